"""How a job starts: arguments, logging, and one policy for errors and exit codes.

Exit code 0: done. 2: the user's mistake, one clear line. 1: everything else, with its traceback. 130: Ctrl-C.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldznet.errors import UserError

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

logger = logging.getLogger(__name__)


def exit_code_of(action: Callable[[], None]) -> int:
    """Run an action and turn what it raises into an exit code."""
    configure_logging()
    try:
        action()
    except UserError as error:
        print(f"ldznet: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201 - the one line for the user
        return 2
    except KeyboardInterrupt:
        print("ldznet: stopped", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def recipe_job(name: str) -> Callable[[Callable[["Recipe"], object]], Callable[..., int]]:
    """Make a job's `main(argv) -> exit code` from a function of a recipe: `NAME RECIPE [a.b=c ...]`."""

    def decorate(job: Callable[["Recipe"], object]) -> Callable[..., int]:
        summary = (sys.modules[job.__module__].__doc__ or "").strip().splitlines()[0]

        def main(argv: Sequence[str] | None = None) -> int:
            parser = argparse.ArgumentParser(prog=f"ldznet {name}", description=summary)
            parser.add_argument(
                "recipe", type=Path, help="a recipe file (YAML), such as jobs/recipes/scenes.yaml"
            )
            parser.add_argument(
                "overrides", nargs="*", metavar="a.b=c", help="overrides, such as train.steps=100"
            )
            arguments = parser.parse_args(argv)

            def act() -> None:
                from pipeline.recipe_file import load_recipe

                job(load_recipe(arguments.recipe, arguments.overrides))

            return exit_code_of(act)

        return main

    return decorate


def configure_logging() -> None:
    """Log to stderr; `LDZNET_LOG` sets the level (default INFO). Libraries speak from WARNING on."""
    level = os.environ.get("LDZNET_LOG", "INFO").upper()
    if level not in logging.getLevelNamesMapping():
        level = "INFO"
    logging.basicConfig(
        format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING
    )
    logging.getLogger().setLevel(logging.WARNING)  # Ray has set up its workers' root logger before us
    for room in ("ldznet", "pipeline", "jobs"):
        logging.getLogger(room).setLevel(level)
