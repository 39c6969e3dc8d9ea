"""What tests of several parts share: a real S3 server, stores on it and in a folder, the shared photos."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import yaml
from hypothesis import settings
from PIL import Image

from ldznet.errors import UserError
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore
from pipeline.services.seaweedfs import SeaweedFS, weed_program

# A slow machine is no failure, and the examples found stay out of the checkout.
settings.register_profile("tests", deadline=None, database=None)
settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--long`: the fault tests with all their kills and outages, as `make test-faults` runs them."""
    parser.addoption("--long", action="store_true", help="fault tests in their long form")


def pytest_configure(config: pytest.Config) -> None:
    """The marker that goes with the option."""
    config.addinivalue_line("markers", "long: only with --long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that have no short form are skipped without the option."""
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="only with --long"))


@pytest.fixture(scope="session")
def long_form(pytestconfig: pytest.Config) -> bool:
    """Whether tests that have both run their long form."""
    return bool(pytestconfig.getoption("--long"))


@pytest.fixture(scope="session", autouse=True)
def places_of_our_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that tests start writes into the user's home or into Ray's usual folder."""
    ray_folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: sockets lie in it, whose paths have a limit
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("xdg-cache")))
        patch.setenv("RAY_TMPDIR", str(ray_folder))
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield
    shutil.rmtree(ray_folder, ignore_errors=True)


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """A running SeaweedFS whose address and credentials are in the environment of the tests."""
    try:
        weed_program()
    except UserError as error:
        pytest.skip(str(error))
    server = SeaweedFS(folder=tmp_path_factory.mktemp("seaweedfs"), bucket="tests")
    with server, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def s3_url(seaweedfs: SeaweedFS) -> str:
    """A place of its own in the test bucket."""
    return f"s3://{seaweedfs.bucket}/{uuid4().hex}"


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store: in a folder, then on SeaweedFS."""
    if request.param == "file":
        return open_store(tmp_path / "objects")
    return open_store(request.getfixturevalue("s3_url"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the shared photos, which lies beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared photos beside the checkout (../shared/data)")
    return folder


PHRASES = ("the red box", "a green box on the left", "the blue box")


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in the folder layout: coloured boxes; 12 photos to train on, 3 to validate. Copy before changing."""
    folder = tmp_path_factory.mktemp("small-data")
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    generator, lines = np.random.default_rng(0), []
    for number in range(15):
        width, height = (96, 72) if number % 2 else (72, 96)
        pixels = generator.integers(0, 80, (height, width, 3), dtype=np.uint8)
        for channel, phrase in enumerate(PHRASES):
            left, top = int(generator.integers(0, width - 32)), int(generator.integers(0, height - 32))
            mask = np.zeros((height, width), np.uint8)
            mask[top : top + 32, left : left + 32] = 255
            pixels[top : top + 32, left : left + 32, channel] = 250
            name = f"masks/{number}-{channel}.png"
            Image.fromarray(mask).save(folder / name)
            split = "train" if number < 12 else "val"
            lines.append({"image": f"images/{number}.png", "mask": name, "phrase": phrase, "split": split})
        Image.fromarray(pixels).save(folder / f"images/{number}.png")
    (folder / "phrases.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


@pytest.fixture(scope="session")
def miniature_ldm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest frozen LDM with Stable Diffusion's topology: a UNet pass of 8 samples takes 20 ms."""
    from ldznet.miniature_ldm import MiniatureConfig, build_miniature_ldm

    config = MiniatureConfig(
        block_out_channels=(8, 8, 16, 16),
        attention_heads=2,
        norm_groups=4,
        context_width=128,  # wide, so that a shard of 1 MiB holds few samples
        text_layers=1,
        text_heads=2,
        vae_channels=(4, 4, 8, 8),
        vocabulary_size=600,
    )
    return build_miniature_ldm(tmp_path_factory.mktemp("ldm") / "miniature", config=config, phrases=PHRASES)


@pytest.fixture(scope="session")
def small_recipe_in(small_data: Path, miniature_ldm: Path) -> Callable[..., Path]:
    """Writes a recipe on the small data into a folder; sections given replace the usual ones. Returns the file."""

    def write(folder: Path, **sections: object) -> Path:
        view = {"policy": "shared", "size": 64}
        train = {
            "split": "train",
            "view": view,
            "timesteps": {"low": 300, "high": 500},
            "prompts": "published",
        }
        content = {
            "name": "small",
            "output": str(folder / "run"),
            "data": {"format": "folder", "root": str(small_data)},
            "ldm": {"source": str(miniature_ldm)},
            "sets": {"train": {**train, "draws": 4}, "val": {"split": "val", "view": {"size": 64}}},
            "features": {"stored_dtype": "fp32"},
            "cache": {"url": str(folder / "cache"), "shard_mebibytes": 1},
            "train": {"steps": 4, "batch_size": 8, "lr": 1e-3, "workers": 2},
            "evaluate": {"sets": ["val"], "batch_size": 4, "examples": 2, "bootstrap": 20},
            "tracking": {"enabled": False},
        }
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(content | sections))
        return path

    return write


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Rounding depends on the number of threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_recipe(tmp_path: Path, small_recipe_in: Callable[..., Path]) -> Callable[..., Path]:
    """Writes the small recipe into the test's own folder."""
    return partial(small_recipe_in, tmp_path)


@pytest.fixture(scope="session")
def precompute_here() -> Callable[..., None]:
    """Computes every set of a recipe's file, as the job does, in this process and without Ray."""
    from pipeline.precompute.sets import finish_set, missing_work, plan_sets
    from pipeline.precompute.worker import Refused, SetOfShards, ShardTask, ShardWorker, WorkerSetup
    from pipeline.recipe_file import load_recipe

    def precompute(path: Path, *overrides: str) -> None:
        recipe = load_recipe(path, overrides)
        store = open_store(recipe.cache.url)
        for plan in plan_sets(recipe, store=store):
            setup = WorkerSetup(
                ldm_source=recipe.ldm.source,
                ldm_digest=plan.spec.ldm_digest,
                features=recipe.features,
                cache_url=recipe.cache.url,
            )
            worker, computed = ShardWorker(setup), {}
            with plan.table:
                for work in missing_work(plan, store=store):
                    of = SetOfShards(set_name=plan.set_name, spec=work.spec, data=plan.data)
                    shard = worker.commit(ShardTask(of=of, plan=work.shard.pack(plan.table)))
                    assert not isinstance(shard, Refused), shard
                    computed[work.name] = shard
                finish_set(recipe, plan, store=store, computed=computed)

    return precompute
