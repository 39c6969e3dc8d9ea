"""The whole flow on this machine, with pictures: scenes of a new style, features, a network adapted, a report."""

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from jobs.entry import exit_code_of
from jobs.local_ray import ray_session

if TYPE_CHECKING:
    from pipeline.evaluation.run import Evaluation
    from pipeline.recipe import Recipe
    from pipeline.report.content import Stage

logger = logging.getLogger("jobs.demo")

RECIPE = Path(__file__).parent / "recipes" / "foreign_style.yaml"
_BUCKET = "ldznet"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments and run the demo."""
    parser = argparse.ArgumentParser(prog="ldznet demo", description=(__doc__ or "").strip())
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of everything it makes")
    parser.add_argument(
        "overrides", nargs="*", metavar="a.b=c", help=f"overrides of {RECIPE.name}, such as train.epochs=2"
    )
    arguments = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    return exit_code_of(lambda: demo(arguments.out, arguments.overrides))


def demo(out: Path, overrides: Sequence[str] = ()) -> None:
    """Run every station, the real one, and say where the results are. What it starts, it stops."""
    from jobs.evaluate import evaluate
    from jobs.precompute import precompute
    from jobs.scenes import scenes
    from jobs.train import train
    from pipeline.report.content import Command

    stages: list[Stage] = []
    with ExitStack() as services:
        with _timed(stages, "start object store and Ray"):
            url = services.enter_context(_object_store(out / "objects"))
            recipe = _recipe(out, url, overrides)
            services.enter_context(ray_session(cpus=recipe.train.max_workers * recipe.train.threads + 1))
        with _timed(stages, "generate scenes"):
            scenes(recipe)
        with _timed(stages, "precompute features"):
            precompute(recipe)
        with _timed(stages, "train"):
            train(recipe)
        segment_line = f"ldznet segment PHOTO.jpg 'the red apple' --model {_model(recipe)}"
        commands = [Command(purpose="Masks of phrases in a photo of yours", line=segment_line)]
        with _timed(stages, "evaluate and report"):
            evaluation = evaluate(recipe, stages=stages, commands=commands)
        _segment_one(recipe, out)
    _say(recipe, evaluation, out=out, segment_line=segment_line, stages=stages)


@contextmanager
def _object_store(folder: Path) -> Iterator[str]:
    """A real S3 server on loopback; a folder where the server has no build for this machine."""
    from ldznet.errors import UserError
    from pipeline.services.seaweedfs import SeaweedFS

    with ExitStack() as stack:
        try:
            server = stack.enter_context(SeaweedFS(folder=folder / "seaweedfs", bucket=_BUCKET))
        except UserError as error:
            logger.warning("%s; a folder serves as the object store instead", error)
            yield f"{folder.absolute()}/files"
            return
        os.environ.update(server.environment())
        logger.info("object store: SeaweedFS, S3 on %s", server.endpoint)
        yield f"s3://{_BUCKET}"


def _recipe(out: Path, url: str, overrides: Sequence[str]) -> "Recipe":
    from pipeline.recipe_file import load_recipe, override_of

    places = {
        "name": "demo",
        "output": out,
        "data.root": out / "data",
        "cache.url": f"{url}/cache",
        "storage": f"{url}/training",
    }
    own = [override_of(key, str(value)) for key, value in places.items()]
    recipe = load_recipe(RECIPE, [*own, *overrides])
    before = [recipe.network.init_from] if recipe.network.starts_trained else []
    models = f"evaluate.models={json.dumps([*before, str(_model(recipe))])}"
    return load_recipe(RECIPE, [*own, *overrides, models])


def _model(recipe: "Recipe") -> Path:
    return Path(recipe.output_folder) / "models" / recipe.network.label


@contextmanager
def _timed(stages: "list[Stage]", name: str) -> "Iterator[None]":
    from pipeline.report.content import Stage

    logger.info("── %s", name)
    started = time.perf_counter()
    yield
    stages.append(Stage(name=name, seconds=time.perf_counter() - started))


def _segment_one(recipe: "Recipe", out: Path) -> None:
    from jobs.segment import main as segment
    from pipeline.datasets.opening import open_dataset

    dataset = open_dataset(recipe.data)
    sample = next(dataset.samples(recipe.sets["foreign"].split))
    photo = Path(recipe.data.root) / sample.image
    arguments = ["--model", str(_model(recipe)), "--out", str(out / "masks")]
    if segment([str(photo), sample.phrase, *arguments]) != 0:
        raise RuntimeError(f"`ldznet segment` failed on {photo}")


def _say(
    recipe: "Recipe",
    evaluation: "Evaluation",
    *,
    out: Path,
    segment_line: str,
    stages: "Sequence[Stage]",
) -> None:
    minutes = sum(stage.seconds for stage in stages) / 60
    print(  # noqa: T201 - the command's result
        f"\nDone in {minutes:.1f} minutes. Frozen LDM: {recipe.ldm.source}, small, trained on other drawing styles.\n"
        "mIoU and AP in percent [95 % interval over images], the threshold of mIoU from val:\n"
        f"{_scores(evaluation)}\n"
        "  (shuffled, hidden: the same photos with other photos' phrases, and with phrases that tell nothing)\n\n"
        f"  report      {out}/report.html\n"
        f"  masks       {out}/masks/\n"
        f"  model       {_model(recipe)}\n"
        f"  runs        mlflow ui --backend-store-uri sqlite:///{(out / 'mlflow.db').absolute()}\n"
        f"  your photo  {segment_line}"
    )


def _scores(evaluation: "Evaluation") -> str:
    """A line a system and set. Sets have phrases of their own number: equal samples of a set are one."""
    return "\n".join(
        f"    {result.set_name:<10}{result.scores.phrases:>5} phrases  {result.model:<20}"
        f"  mIoU {result.scores.miou.at_val or result.scores.miou.at_fixed}  AP {result.scores.ap}"
        for result in evaluation.results
    )


def _leave(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
