"""A trained model in a real MLflow registry: once, found again, loaded alone and behind `mlflow models serve`."""

import base64
import io
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image

from ldznet.errors import UserError
from ldznet.ldm_folder import ldm_digest
from ldznet.miniature_ldm import MiniatureConfig, build_miniature_ldm
from ldznet.modeling import NetworkConfig, build_network, unet_config_of
from ldznet.prediction_config import PredictionConfig
from ldznet.predictor import Predictor
from pipeline.models.registered import pinned, register_model, resolve_model, set_alias
from pipeline.services.loopback_server import LoopbackServer, http_status
from pipeline.services.ports import LOOPBACK, free_ports, is_free
from pipeline.tracking.client import open_client, sqlite_uri
from pipeline.tracking.tracker import Tracker, TrackingConfig

pytestmark = pytest.mark.long  # `make test-cluster`

QUIET = TrackingConfig(experiment="tests", system_metrics=False)
PHRASES = ["the red apple", "the sky"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MLflow's global default is a file in the working folder: nothing of ours may end up there."""
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", ""
    )  # so that what `mlflow.set_tracking_uri` leaves there is undone
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield
    assert list(folder.iterdir()) == [], "MLflow wrote into the working folder"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LD-ZNet with its LDM, saved as training saves it."""
    folder = tmp_path_factory.mktemp("model")
    config = MiniatureConfig(
        block_out_channels=(8, 16, 16, 16), attention_heads=2, norm_groups=4, context_width=16, text_layers=1,
        text_heads=2, vocabulary_size=300, vae_channels=(4, 4, 4, 4),
    )  # fmt: skip
    ldm = build_miniature_ldm(folder / "ldm", config=config, phrases=["the red apple"])
    torch.manual_seed(0)
    network = build_network(NetworkConfig(unet=unet_config_of(ldm), positional_latent_side=8))
    network.save_pretrained(folder / "network")
    PredictionConfig(ldm_source=str(ldm), ldm_digest=ldm_digest(ldm), size=64).save(folder / "network")
    (folder / "network/README.md").write_text("# A model\n")
    return folder / "network"


@pytest.fixture(scope="module")
def registry(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """An MLflow with the model, registered by a run that is over."""
    with Tracker(QUIET, folder=tmp_path_factory.mktemp("mlflow")) as tracker:
        tracker.start(job="train")
        assert register_model(tracker, model_folder, name="segmenter", alias="best") == "1"
    return tracker


def photo(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(255, size=(70, 90, 3), dtype=np.uint8)
    pixels[20:50, 10 + 20 * seed : 40 + 20 * seed] = (220, 30, 30)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def expected_masks(folder: Path, image: Image.Image) -> list[Any]:
    predictor = Predictor.from_pretrained(folder)
    predictor.set_image(image)
    return [found.mask for found in predictor.predict(PHRASES)]


def mask_of(row: Mapping[str, Any]) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(row["mask_png"])))) == 255


PREDICT = """
import sys, json, base64
import mlflow, pandas as pd
# Only what the artifact holds: a machine that serves has no checkout.
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
mlflow.set_tracking_uri(sys.argv[1])
uri = "models:/segmenter@best"
path = sys.argv[2]
data = open(path, "rb").read()
rows = []
for model, images in (
    (mlflow.pyfunc.load_model(uri), (data, base64.b64encode(data).decode())),
    (mlflow.pyfunc.load_model(uri, model_config={"paths": True}), (path,)),
):
    for image in images:
        table = pd.DataFrame({"image": [image, image], "phrase": ["the red apple", "the sky"]}, index=[7, 7])
        rows.append(model.predict(table).to_dict("records"))
import ldznet
print(json.dumps({"rows": rows, "code": ldznet.__file__, "pipeline": "pipeline" in sys.modules}))
"""


def test_it_answers_without_the_checkout(tmp_path: Path, model_folder: Path, registry: Tracker) -> None:
    artifacts = Path(registry.uri.removeprefix("sqlite:///")).parent / "mlflow-artifacts"
    assert not [
        path for path in artifacts.rglob("*") if path.suffix in {".pkl", ".pickle", ".pt", ".pth", ".pyc"}
    ]
    assert list(artifacts.rglob("README.md"))
    (tmp_path / "photo.png").write_bytes(png(photo(0)))
    arguments = [sys.executable, "-c", PREDICT, registry.uri, str(tmp_path / "photo.png")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        arguments, check=True, capture_output=True, text=True, cwd=artifacts, env=environment
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    assert Path(answer["code"]).is_relative_to(artifacts)
    assert not answer["pipeline"]
    masks = expected_masks(model_folder, photo(0))
    assert len(answer["rows"]) == 3
    for rows in answer["rows"]:
        for row, mask in zip(rows, masks, strict=True):
            assert np.array_equal(mask_of(row), mask)
            assert row["area"] == pytest.approx(mask.mean())


def test_it_tells_what_it_takes_and_gives_by_signature_and_example(registry: Tracker) -> None:
    mlflow.set_tracking_uri(registry.uri)
    loaded = mlflow.pyfunc.load_model("models:/segmenter@best")
    signature = loaded.metadata.signature
    assert signature.inputs.input_names() == ["image", "phrase"]
    assert signature.outputs.input_names() == ["mask_png", "area"]
    example = loaded.input_example
    assert list(example.columns) == ["image", "phrase"]
    answer = loaded.predict(example)
    assert list(answer.columns) == ["mask_png", "area"]
    assert len(answer) == len(example)
    assert mask_of(answer.to_dict("records")[0]).ndim == 2


class ScoringServer(LoopbackServer):
    """`mlflow models serve` with the packages of this environment."""

    name = "scoring"

    def __init__(self, *, folder: Path, uri: str) -> None:
        super().__init__(folder=folder, start_within_s=400)
        self._uri, self._port = uri, 0

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    def choose_ports(self) -> None:
        (self._port,) = free_ports(1)

    def command(self) -> Sequence[str | Path]:
        serve = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri=models:/segmenter@best"]
        return [*serve, "--env-manager=local", "--workers=1", f"--host={LOOPBACK}", f"--port={self._port}"]

    def servers_environment(self) -> Mapping[str, str]:
        # MLflow starts the server by a shell, which is to find this environment's programs.
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        ours = {"MLFLOW_TRACKING_URI": self._uri, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"}
        return {**os.environ, **ours}

    def answers(self) -> bool:
        return http_status(self.address, "/ping") == 200

    def secrets(self) -> Sequence[str]:
        return ()

    def post(self, images: Sequence[Any], phrases: Sequence[Any]) -> list[dict[str, Any]]:
        rows = [list(row) for row in zip(images, phrases, strict=True)]
        body = json.dumps({"dataframe_split": {"columns": ["image", "phrase"], "data": rows}}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.address}/invocations", data=body, headers=headers)  # noqa: S310
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310 - on loopback
            found: list[dict[str, Any]] = json.load(answer)["predictions"]
            return found


@pytest.fixture(scope="module")
def server(registry: Tracker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScoringServer]:
    """A real scoring server; its port is free again afterwards, and its processes are gone."""
    with ScoringServer(folder=tmp_path_factory.mktemp("serving"), uri=registry.uri) as running:
        supervisor = running.pid
        yield running
    assert is_free(running.port)
    assert not Path(f"/proc/{supervisor}").exists()


def text(image: Image.Image) -> str:
    return base64.b64encode(png(image)).decode()


def test_served_masks_are_the_predictors(server: ScoringServer, model_folder: Path) -> None:
    images = [text(photo(0)), text(photo(1)), text(photo(0)), text(photo(1))]
    phrases = [PHRASES[0], PHRASES[0], PHRASES[1], PHRASES[1]]
    masks = [expected_masks(model_folder, photo(seed)) for seed in (0, 1)]
    assert not np.array_equal(masks[0][0], masks[1][0]), "the photos are to be told apart"
    answer = server.post(images, phrases)
    for row, mask in zip(answer, [masks[0][0], masks[1][0], masks[0][1], masks[1][1]], strict=True):
        assert np.array_equal(mask_of(row), mask)


def test_requests_at_once_do_not_mix(server: ScoringServer, model_folder: Path) -> None:
    masks = [expected_masks(model_folder, photo(seed))[0] for seed in (0, 1)]
    images = [text(photo(seed)) for seed in (0, 1)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda number: server.post([images[number % 2]], PHRASES[:1]), range(24)))
    for number, (row,) in enumerate(answers):
        assert np.array_equal(mask_of(row), masks[number % 2])


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ("/dev/zero", "no base64"),  # never opened
        (__file__, "no base64"),
        (base64.b64encode(b"no image").decode(), "image"),
        (None, "image"),
    ],
)
def test_what_is_no_image_is_refused(image: str | None, told: str, server: ScoringServer) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.post([image], PHRASES[:1])
    assert refused.value.code == 400
    assert told in refused.value.read().decode()
    assert server.answers()


def test_an_equal_model_is_registered_once(tmp_path: Path, model_folder: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in model_folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    with Tracker(QUIET, folder=tmp_path) as tracker:
        first = tracker.start(job="train")
        assert register_model(tracker, copy, name="segmenter", alias="best") == "1"
    with Tracker(QUIET, folder=tmp_path) as tracker:
        second = tracker.start(job="train")
        (copy / "provenance.json").write_text(json.dumps({"run_id": second}))
        (copy / "README.md").write_text("# Told otherwise\n")
        assert register_model(tracker, copy, name="segmenter", alias="again") == "1"
        client = open_client(tracker.uri)
        assert str(client.get_model_version_by_alias("segmenter", "again").version) == "1"
        assert client.get_run(str(second)).outputs.model_outputs == []
        assert len(client.get_run(str(first)).outputs.model_outputs) == 1
        # Another threshold is another model; so is the same one after its version was deleted.
        PredictionConfig.load(copy).model_copy(update={"threshold": 0.25}).save(copy)
        assert register_model(tracker, copy, name="segmenter", alias="best") == "2"
        assert str(client.get_model_version_by_alias("segmenter", "best").version) == "2"
        client.delete_model_version("segmenter", "2")
        assert register_model(tracker, copy, name="segmenter") == "3"
        set_alias(tracker, "segmenter", "1", alias="best")
        assert str(client.get_model_version_by_alias("segmenter", "best").version) == "1"


def test_a_reference_resolves_to_the_model_folder(
    tmp_path: Path, model_folder: Path, monkeypatch: Any
) -> None:
    tracker = Tracker(QUIET, folder=tmp_path)
    with tracker:
        tracker.start(job="train")
        register_model(tracker, model_folder, name="segmenter", alias="best")
    for reference in ("models:/segmenter@best", "models:/segmenter/1"):
        found = resolve_model(reference, tracker.uri)
        assert {path.name: path.read_bytes() for path in found.iterdir()} == {
            path.name: path.read_bytes() for path in model_folder.iterdir()
        }
    assert resolve_model("models:/segmenter@best", tracker.uri, folder=tmp_path / "here").is_relative_to(
        tmp_path / "here"
    )
    assert pinned("models:/segmenter@best", tracker.uri) == "models:/segmenter/1"
    assert pinned("builtin:scenes-128-ldznet") == "builtin:scenes-128-ldznet"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    assert resolve_model("models:/segmenter/1") == resolve_model("models:/segmenter/1", tracker.uri)
    assert resolve_model(model_folder) == model_folder
    for wrong, said in (
        ("models:/segmenter@worst", "alias worst not found"),
        ("models:/other@best", "other not found"),
        ("models:/segmenter/7", "version=7"),
        ("models:/segmenter", "write models:/NAME@ALIAS"),
        (str(tmp_path / "nothing"), "there is no model folder"),
    ):
        with pytest.raises(UserError, match=said) as raised:
            resolve_model(wrong)
        assert "\n" not in str(raised.value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError, match="--tracking-uri"):
        resolve_model("models:/segmenter@best")


def test_registering_what_is_not_there_or_while_mlflow_is_away(tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "store").write_text("not a folder")
    uri = sqlite_uri(tmp_path / "store" / "mlflow.db")
    tracker = Tracker(QUIET.model_copy(update={"uri": uri}), folder=tmp_path / "run")
    tracker.start(job="train")
    assert register_model(tracker, model_folder, name="segmenter", alias="best") is None
    with pytest.raises(UserError, match="there is no model folder"):
        register_model(tracker, tmp_path / "nothing", name="segmenter", alias="best")
