"""How a job starts: arguments, logging, and one policy for errors and exit codes.

Exit code 0: done. 2: the user's mistake, one clear line. 1: what no retry mends, one clear line; everything else, with
its traceback. 130: Ctrl-C.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ldznet.errors import FinalError, UserError

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
    except FinalError as error:
        print(f"ldznet: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201 - likewise
        return 1
    except KeyboardInterrupt:
        print("ldznet: stopped", file=sys.stderr)  # noqa: T201 - likewise
        return 130
    return 0


@dataclass(frozen=True, kw_only=True)
class RecipeJob:
    """The command of a job that takes a recipe: `NAME RECIPE [a.b=c ...] [--flag ...] [--dry-run]`.

    Called with the words after NAME, it runs the job and returns the exit code.
    """

    name: str
    summary: str
    job: Callable[..., object]
    flags: Mapping[str, str]  # switches and what they say in `--help`; the job takes them as keywords

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run the job."""
        words = sys.argv[1:] if argv is None else argv
        # Flags first: argparse takes no overrides after one.
        arguments = self.parser().parse_args(sorted(words, key=lambda word: not word.startswith("-")))
        return exit_code_of(lambda: self._act(arguments))

    def parser(self) -> argparse.ArgumentParser:
        """What the job takes."""
        parser = argparse.ArgumentParser(prog=f"ldznet {self.name}", description=self.summary)
        parser.add_argument(
            "recipe", type=Path, help="a recipe file (YAML), such as jobs/recipes/scenes.yaml"
        )
        parser.add_argument(
            "overrides", nargs="*", metavar="a.b=c", help="overrides, such as train.steps=100"
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="check the recipe, say what would be done, touch nothing"
        )
        for flag, says in self.flags.items():
            parser.add_argument(f"--{flag}", action="store_true", help=says)
        return parser

    def recipes(self, path: Path, overrides: Sequence[str]) -> "tuple[Recipe, ...]":
        """The recipes that the job would run: one, unless the job knows of several.

        Raises:
            UserError: see `load_recipe`.
        """
        from pipeline.recipe_file import load_recipe

        return (load_recipe(path, overrides),)

    def _act(self, arguments: argparse.Namespace) -> None:
        from pipeline.recipe_file import load_recipe

        recipe = load_recipe(arguments.recipe, arguments.overrides)
        if arguments.dry_run:
            print(dry_run_text(self.name, self.summary, recipe))  # noqa: T201 - the command's result
        else:
            self.job(recipe, **{flag: getattr(arguments, flag) for flag in self.flags})


def recipe_job(
    name: str, *, flags: Mapping[str, str] | None = None
) -> Callable[[Callable[..., object]], RecipeJob]:
    """Make a job's `main(argv) -> exit code` from a function of a recipe.

    Args:
        name: of the command.
        flags: further switches and what they say in `--help`; the job takes them as keywords.
    """

    def decorate(job: Callable[..., object]) -> RecipeJob:
        summary = (sys.modules[job.__module__].__doc__ or "").strip().splitlines()[0]
        return RecipeJob(name=name, summary=summary, job=job, flags=dict(flags or {}))

    return decorate


def dry_run_text(name: str, summary: str, recipe: "Recipe") -> str:
    """What a job would do with a recipe: nothing is opened, read or reached for it."""
    sets = ", ".join(f"{label} ({one.split})" for label, one in recipe.sets.items())
    lines = {
        "recipe": f"{recipe.name}, digest {recipe.digest()}",
        "would run": f"{name}: {summary}",
        "sets": sets,
        "cache": recipe.cache.url,
        "output": recipe.output_folder,
        "storage": recipe.storage_url,
    }
    return "\n".join(f"{label:<9}  {text}" for label, text in lines.items())


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
