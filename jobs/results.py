"""Make docs/results.md again: train and score the networks on scenes (hours on 2 cores; what is done is kept)."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from jobs.entry import exit_code_of

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

logger = logging.getLogger("jobs.results")

T = TypeVar("T")

RECIPES = Path(__file__).parent / "recipes"
DOCUMENTS = Path(__file__).parents[1] / "docs" / "results"
_NETWORKS = {
    "ldznet": ["network.kind=ldznet"],
    "znet": ["network.kind=znet"],
    "ldznet-concat": ["network.kind=ldznet", "network.fusion=concat"],
    "rgbnet": ["network.kind=rgbnet"],
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments and make the results."""
    parser = argparse.ArgumentParser(prog="python -m jobs.results", description=(__doc__ or "").strip())
    parser.add_argument(
        "--only", choices=("table", "adapted", "page"), help="one experiment, or the page alone"
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=_NETWORKS,
        default=list(_NETWORKS),
        help="of the table (default: all)",
    )
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="overrides, such as train.steps=100")
    arguments = parser.parse_args(argv)
    return exit_code_of(
        lambda: results(arguments.only, networks=arguments.networks, overrides=arguments.overrides)
    )


def results(only: str | None, *, networks: Sequence[str], overrides: Sequence[str] = ()) -> None:
    """Run the experiments that are asked for, and write the page from all records."""
    from jobs.local_ray import ray_session
    from pipeline.results.document import write_document

    if only != "page":
        with ray_session(cpus=3):
            if only in {None, "table"}:
                table(networks, overrides)
            if only in {None, "adapted"}:
                adapted(overrides)
    logger.info("results: %s", write_document(DOCUMENTS))


def table(networks: Sequence[str], overrides: Sequence[str]) -> None:
    """Networks trained on the scenes of the LDM's own styles, scored on all sets beside the LDM's own noise maps."""
    from jobs.train import train

    path = RECIPES / "scenes_128.yaml"
    recipe = _loaded(path, overrides)
    minutes = _prepared(recipe)
    folders = []
    for network in networks:
        one = _loaded(path, [*overrides, *_NETWORKS[network]])
        folders.append(minutes.of(f"train {one.network.label}", partial(train, one)))
    models = [*map(str, folders), "noise-map"]
    _record(path, recipe, overrides, models=models, name="table", shown="foreign", minutes=minutes)


def adapted(overrides: Sequence[str]) -> None:
    """The LD-ZNet that comes with ldznet before and after training on a foreign style, and its controls."""
    from jobs.train import train

    path = RECIPES / "foreign_style.yaml"
    recipe = _loaded(path, overrides)
    minutes = _prepared(recipe)
    folder = minutes.of("train", partial(train, recipe))
    models = [recipe.network.init_from, str(folder)]
    _record(path, recipe, overrides, models=models, name="adapted", shown="foreign", minutes=minutes)


def _loaded(path: Path, overrides: Sequence[str]) -> "Recipe":
    from pipeline.recipe_file import load_recipe

    return load_recipe(path, overrides)


def _prepared(recipe: "Recipe") -> "Minutes":
    from jobs.precompute import precompute
    from jobs.scenes import scenes

    minutes = Minutes(Path(recipe.output_folder) / "minutes.json")
    minutes.of("scenes", partial(scenes, recipe))
    minutes.of("precompute", partial(precompute, recipe))
    return minutes


class Minutes:
    """What stations took, kept in a file: one that is run again, and finds its work done, does not count."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.taken: dict[str, float] = {}
        if path.is_file():
            self.taken = json.loads(path.read_text(encoding="utf-8"))

    def of(self, station: str, act: Callable[[], T]) -> T:
        """Do a station's work."""
        started = time.perf_counter()
        done = act()
        self.taken.setdefault(station, (time.perf_counter() - started) / 60)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.taken, indent=1) + "\n", encoding="utf-8")
        return done


def _record(
    path: Path,
    recipe: "Recipe",
    overrides: Sequence[str],
    *,
    models: Sequence[str],
    name: str,
    shown: str,
    minutes: Minutes,
) -> None:
    from jobs.evaluate import evaluate
    from pipeline.results.masks_sheet import masks_sheet
    from pipeline.results.record import ResultRecord

    scored = _loaded(path, [*overrides, f"evaluate.models=[{','.join(models)}]"])
    evaluation = evaluate(scored)
    command = " ".join(["python -m jobs.results --only", name, *overrides])
    record = ResultRecord.of(recipe, evaluation, name=name, command=command, minutes=minutes.taken)
    record.save(DOCUMENTS)
    masks_sheet(evaluation, set_name=shown).save(DOCUMENTS / f"{name}.jpg", quality=88)


if __name__ == "__main__":
    sys.exit(main())
