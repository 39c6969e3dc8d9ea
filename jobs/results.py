"""Make docs/results.md again: train and score networks on scenes (hours on 2 cores; what is trained stays trained)."""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jobs.entry import exit_code_of

logger = logging.getLogger("jobs.results")

RECIPES = Path(__file__).parent / "recipes"
COMPARED, ADAPTED = RECIPES / "scenes_128.yaml", RECIPES / "foreign_style.yaml"
DOCUMENTS = Path(__file__).parents[1] / "docs" / "results"
_COMPARISONS = ("table", "start", "labels", "ablations")
_PARTS = (*_COMPARISONS, "adapted", "page")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments and make the results."""
    parser = argparse.ArgumentParser(prog="python -m jobs.results", description=(__doc__ or "").strip())
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=_PARTS, help="some parts (default: all)")
    of_comparisons = parser.add_argument_group("of the comparisons")
    of_comparisons.add_argument("--systems", nargs="+", default=[], metavar="NAME", help="these alone")
    of_comparisons.add_argument("--seeds", nargs="+", type=int, default=[], metavar="N", help="these alone")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="a.b=c", dest="overrides", help="overrides of all recipes"
    )
    return exit_code_of(lambda: results(parser.parse_args(argv)))


def results(arguments: argparse.Namespace) -> None:
    """Run the experiments that are asked for, and write the page from all records.

    Raises:
        UserError: one of them cannot be run as asked; none has been begun then.
    """
    from jobs.comparison import compare, staying_record
    from jobs.local_ray import ray_session
    from pipeline.recipe_file import load_recipe
    from pipeline.results.document import write_document
    from pipeline.results.experiments import EXPERIMENTS
    from pipeline.results.masks_sheet import require_examples

    chosen = {
        name: EXPERIMENTS[name].only(systems=arguments.systems, seeds=arguments.seeds)
        for name in _COMPARISONS
        if name in arguments.only
    }
    for experiment in chosen.values():
        staying_record(experiment, recipe=COMPARED, overrides=arguments.overrides, into=DOCUMENTS)
    if "adapted" in arguments.only:
        require_examples(load_recipe(ADAPTED, arguments.overrides))
    if set(arguments.only) != {"page"}:
        with ray_session(cpus=3):
            for name, experiment in chosen.items():
                compare(
                    experiment,
                    recipe=COMPARED,
                    overrides=arguments.overrides,
                    command=_command(name, arguments),
                    into=DOCUMENTS,
                )
            if "adapted" in arguments.only:
                adapt(arguments.overrides, command=_command("adapted", arguments))
    logger.info("results: %s", write_document(DOCUMENTS))


def _command(name: str, arguments: argparse.Namespace) -> str:
    chosen: dict[str, Sequence[object]] = {}
    if name in _COMPARISONS:
        chosen |= {"systems": arguments.systems, "seeds": arguments.seeds}
    chosen["set"] = arguments.overrides
    options = [
        f"--{option} {' '.join(shlex.quote(str(one)) for one in given)}"
        for option, given in chosen.items()
        if given
    ]
    return " ".join([f"python -m jobs.results --only {name}", *options])


def adapt(overrides: Sequence[str], *, command: str) -> None:
    """The LD-ZNet that comes with ldznet before and after training on a foreign style, and its controls.

    Args:
        overrides: of the recipe.
        command: that does it again, for the record.
    """
    from jobs.evaluate import evaluate
    from jobs.precompute import precompute
    from jobs.scenes import scenes
    from jobs.train import train
    from pipeline.recipe_file import load_recipe
    from pipeline.results.masks_sheet import masks_sheet
    from pipeline.results.minutes import Minutes
    from pipeline.results.record import ResultRecord, ResultRow

    recipe = load_recipe(ADAPTED, overrides)
    minutes = Minutes(Path(recipe.output_folder) / "minutes.json")
    minutes.of("scenes", partial(scenes, recipe))
    minutes.of("precompute", partial(precompute, recipe))
    folder = minutes.of("train", partial(train, recipe))
    scored = evaluate(
        load_recipe(ADAPTED, [*overrides, f"evaluate.models=[{recipe.network.init_from},{folder}]"])
    )
    ResultRecord.of(
        recipe,
        map(ResultRow.of, scored.results),
        name="adapted",
        command=command,
        minutes=minutes.taken,
    ).save(DOCUMENTS)
    masks_sheet(scored, set_name="foreign").save(DOCUMENTS / "adapted.jpg", quality=88)


if __name__ == "__main__":
    sys.exit(main())
