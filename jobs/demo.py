"""The whole flow on this machine, from nothing, with pictures: scenes, features, two trainings, masks, a report."""

import argparse
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
    from pipeline.recipe import Recipe
    from pipeline.report.content import Stage

logger = logging.getLogger("jobs.demo")

RECIPE = Path(__file__).parent / "recipes" / "scenes.yaml"
NETWORKS = ("znet", "ldznet")
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
    from jobs.miniature import miniature
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
        with _timed(stages, "make the frozen LDM (untrained)"):
            miniature(recipe)
        with _timed(stages, "precompute features"):
            precompute(recipe)
        for kind in NETWORKS:
            with _timed(stages, f"train {kind}"):
                train(_recipe(out, url, [*overrides, f"network.kind={kind}"]))
        segment_line = f"ldznet segment PHOTO.jpg 'the red apple' --model {out}/models/ldznet"
        commands = [Command(purpose="Masks of phrases in a photo of yours", line=segment_line)]
        with _timed(stages, "evaluate and report"):
            evaluate(recipe, stages=stages, commands=commands)
        _segment_one(recipe, out)
    _say(out, segment_line, stages)


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
    from pipeline.recipe_file import load_recipe

    places = {
        "name": "demo",
        "output": out,
        "data.root": out / "data",
        "ldm.source": out / "ldm",
        "cache.url": f"{url}/cache",
        "storage": f"{url}/training",
    }
    return load_recipe(RECIPE, [*(f"{key}={value}" for key, value in places.items()), *overrides])


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
    sample = next(dataset.samples(recipe.sets["test"].split))
    photo = Path(recipe.data.root) / sample.image
    arguments = [
        str(photo),
        sample.phrase,
        "--model",
        str(out / "models" / "ldznet"),
        "--out",
        str(out / "masks"),
    ]
    if segment(arguments) != 0:
        raise RuntimeError(f"`ldznet segment` failed on {photo}")


def _say(out: Path, segment_line: str, stages: "Sequence[Stage]") -> None:
    minutes = sum(stage.seconds for stage in stages) / 60
    print(  # noqa: T201 - the command's result
        f"\nDone in {minutes:.1f} minutes. The frozen LDM is an UNTRAINED miniature: a real flow, but poor masks.\n"
        f"  report      {out}/report.html\n"
        f"  masks       {out}/masks/\n"
        f"  models      {out}/models/znet, {out}/models/ldznet\n"
        f"  runs        mlflow ui --backend-store-uri sqlite:///{(out / 'mlflow.db').absolute()}\n"
        f"  your photo  {segment_line}"
    )


def _leave(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
