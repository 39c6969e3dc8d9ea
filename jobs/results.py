"""Make docs/results.md again: train and score networks on scenes (hours on 2 cores; what is trained stays trained)."""

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict

from jobs.entry import exit_code_of

logger = logging.getLogger("jobs.results")

RECIPES = Path(__file__).parent / "recipes"
PRETRAINED, COMPARED = RECIPES / "pretrain_cpu.yaml", RECIPES / "scenes_128.yaml"
PROBED, ADAPTED = RECIPES / "probe_128.yaml", RECIPES / "foreign_style.yaml"
DOCUMENTS = Path(__file__).parents[1] / "docs" / "results"
_COMPARISONS = ("table", "start", "blocks", "text", "longer", "labels", "ablations")
_PARTS = ("ldm", "probe", *_COMPARISONS, "influence", "times", "adapted", "page")


class _Recorded(TypedDict):
    command: str
    into: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments and make the results."""
    parser = argparse.ArgumentParser(prog="python -m jobs.results", description=(__doc__ or "").strip())
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=_PARTS, help="some parts (default: all)")
    of_comparisons = parser.add_argument_group("of the comparisons")
    of_comparisons.add_argument("--systems", nargs="+", default=[], metavar="NAME", help="these alone")
    of_comparisons.add_argument("--seeds", nargs="+", type=int, default=[], metavar="N", help="these alone")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="a.b=c",
        dest="overrides",
        help="overrides of all recipes but ldm's",
    )
    return exit_code_of(lambda: results(parser.parse_args(argv)))


def results(arguments: argparse.Namespace) -> None:
    """Run the experiments that are asked for, and write the page from all records.

    Raises:
        UserError: one of them cannot be run as asked; none has been begun then.
    """
    from jobs.local_ray import ray_session
    from pipeline.results.document import write_document

    acts = _checked(arguments)
    if acts:
        with ray_session(cpus=3):
            for part in _PARTS:
                if part in acts:
                    acts[part]()
    logger.info("results: %s", write_document(DOCUMENTS))


def _checked(arguments: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """What makes each part, of all that are asked for; a mistake in one is told before the first is begun."""
    from jobs.comparison import compare, staying_record
    from jobs.results_adapted import adapt, require_adaptable
    from jobs.results_influence import measure_shipped_influence
    from jobs.results_ldm import show_shipped_ldm
    from jobs.results_probe import probe_shipped_ldm
    from jobs.results_times import measure_times, require_tracked
    from pipeline.recipe_file import load_recipe
    from pipeline.results.experiments import EXPERIMENTS
    from pipeline.results.influence import require_measurable

    overrides = arguments.overrides
    acts: dict[str, Callable[[], None]] = {}
    for part in arguments.only:
        recorded: _Recorded = {"command": _command(part, arguments), "into": DOCUMENTS}
        if part in _COMPARISONS:
            chosen = EXPERIMENTS[part].only(systems=arguments.systems, seeds=arguments.seeds)
            staying_record(chosen, recipe=COMPARED, overrides=overrides, into=DOCUMENTS)
            acts[part] = partial(compare, chosen, recipe=COMPARED, overrides=overrides, **recorded)
        elif part == "ldm":
            acts[part] = partial(show_shipped_ldm, PRETRAINED, **recorded)
        elif part == "probe":
            load_recipe(PROBED, overrides)
            acts[part] = partial(probe_shipped_ldm, PROBED, overrides, **recorded)
        elif part == "influence":
            require_measurable(load_recipe(COMPARED, overrides))
            acts[part] = partial(measure_shipped_influence, COMPARED, overrides, **recorded)
        elif part == "times":
            require_tracked(load_recipe(COMPARED, overrides))
            acts[part] = partial(measure_times, COMPARED, overrides, **recorded)
        elif part == "adapted":
            require_adaptable(ADAPTED, overrides)
            acts[part] = partial(adapt, ADAPTED, overrides, **recorded)
    return acts


def _command(part: str, arguments: argparse.Namespace) -> str:
    chosen: dict[str, Sequence[object]] = {}
    if part in _COMPARISONS:
        chosen |= {"systems": arguments.systems, "seeds": arguments.seeds}
    if part != "ldm":
        chosen["set"] = arguments.overrides
    options = [
        f"--{option} {' '.join(shlex.quote(str(one)) for one in given)}"
        for option, given in chosen.items()
        if given
    ]
    return " ".join([f"python -m jobs.results --only {part}", *options])


if __name__ == "__main__":
    sys.exit(main())
