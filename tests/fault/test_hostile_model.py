"""Models that mean harm: their code and pickles lie in the folder or in the registry, and none of it is run."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from ldznet import Predictor
from ldznet.errors import UserError
from ldznet.ldm_folder import ldm_digest
from ldznet.modeling import NetworkConfig, build_network, network_from_pretrained, unet_config_of
from ldznet.modeling.pretrained import CONFIG_FILE, WEIGHTS_FILE
from ldznet.prediction_config import PredictionConfig
from pipeline.models.folder import download_model, upload_model
from pipeline.models.registered import resolve_model
from pipeline.tracking.client import open_client, sqlite_uri

PICKLES = ("pytorch_model.bin", "model.pkl", "model.pt", "training_args.bin")
CODE = ("__init__.py", "modeling.py", "evil.py", "conftest.py", "sitecustomize.py", "evil.pth")


class Runs:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.trace),))


def code(trace: Path) -> str:
    """Leaves the trace when it is imported; serves MLflow as a loader."""
    return f"import os; os.makedirs({str(trace)!r}, exist_ok=True)\ndef _load_pyfunc(path): return None\n"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A folder that is there once something has run."""
    return tmp_path / "ran"


@pytest.fixture
def model(tmp_path: Path, trace: Path, miniature_ldm: Path) -> Path:
    """A sound model with code and pickles beside it, which its configuration names."""
    folder = tmp_path / "model"
    torch.manual_seed(0)
    network = build_network(NetworkConfig(unet=unet_config_of(miniature_ldm), positional_latent_side=8))
    network.save_pretrained(folder)
    PredictionConfig(ldm_source=str(miniature_ldm), ldm_digest=ldm_digest(miniature_ldm), size=64).save(
        folder
    )
    for name in PICKLES:
        (folder / name).write_bytes(pickle.dumps(Runs(trace)))
    for name in CODE:
        (folder / name).write_text(code(trace))
    config = json.loads((folder / CONFIG_FILE).read_text())
    named = {"auto_map": {"AutoModel": "modeling.Model"}, "architectures": ["evil.Model"]}
    (folder / CONFIG_FILE).write_text(json.dumps(config | named))
    return folder


def test_what_is_planted_would_run(model: Path, trace: Path) -> None:
    for name in (*PICKLES, *CODE):
        if name in PICKLES:
            pickle.loads((model / name).read_bytes())
        else:
            exec((model / name).read_text(), {})  # noqa: S102 - of this test
        trace.rmdir()


def used(folder: Path) -> None:
    """As `ldznet segment` and `ldznet evaluate` use a model."""
    predictor = Predictor.from_pretrained(folder, device="cpu")
    predictor.set_image(Image.new("RGB", (80, 60), (200, 30, 30)))
    assert len(predictor.predict(["the red box"])) == 1


def test_code_and_pickles_in_a_model_folder_are_not_run(model: Path, trace: Path, tmp_path: Path) -> None:
    used(model)
    upload_model(model, url=str(tmp_path / "store"), facts={"step": 1})
    download_model(str(tmp_path / "store"), tmp_path / "fetched")
    assert {*PICKLES, *CODE} <= {path.name for path in (tmp_path / "fetched").iterdir()}
    used(tmp_path / "fetched")
    assert not trace.exists()


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_pickle_in_the_place_of_weights_is_refused_and_not_run(model: Path, trace: Path, form: str) -> None:
    if form == "pickle":
        (model / WEIGHTS_FILE).write_bytes(pickle.dumps(Runs(trace)))
    else:
        torch.save({"weight": Runs(trace)}, model / WEIGHTS_FILE)
    with pytest.raises(UserError, match="cannot be read"):
        network_from_pretrained(model)
    (model / WEIGHTS_FILE).unlink()  # with other pickles still there
    with pytest.raises(UserError, match="cannot be read"):
        network_from_pretrained(model)
    assert not trace.exists()


@pytest.mark.slow
def test_a_registered_models_code_is_not_run(model: Path, trace: Path, tmp_path: Path) -> None:
    """Whoever may write to MLflow registers what they like: its folder is fetched, and what lies in it as data used."""
    packed = tmp_path / "packed"
    (packed / "artifacts").mkdir(parents=True)
    model.rename(packed / "artifacts" / "model")
    (packed / "code").mkdir()
    for name in ("evil.py", "ldznet.py", "sitecustomize.py"):
        (packed / "code" / name).write_text(code(trace))
    (packed / "python_model.pkl").write_bytes(pickle.dumps(Runs(trace)))
    flavour = {
        "loader_module": "evil",
        "code": "code",
        "python_model": "python_model.pkl",
        "artifacts": {"model": {"path": "artifacts/model", "uri": "elsewhere"}},
        "env": {},
    }
    (packed / "MLmodel").write_text(yaml.safe_dump({"flavors": {"python_function": flavour}}))
    uri = sqlite_uri(tmp_path / "mlflow.db")
    client = open_client(uri)
    client.create_registered_model("segmenter")
    client.create_model_version("segmenter", source=packed.as_uri())
    client.set_registered_model_alias("segmenter", "best", "1")
    for folder in (None, tmp_path / "here"):
        if folder is not None:
            folder.mkdir()
        found = resolve_model("models:/segmenter@best", uri, folder=folder)
        assert {*PICKLES, *CODE} <= {path.name for path in found.iterdir()}
        used(found)
        assert not trace.exists()
    # MLflow's own loader runs it.
    script = "import sys, mlflow.pyfunc; mlflow.pyfunc.load_model(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", script, str(packed)], capture_output=True, check=False, cwd=tmp_path
    )
    assert trace.exists()


def test_a_description_that_is_code_is_not_run(trace: Path, tmp_path: Path) -> None:
    """`MLmodel` is YAML, in which a careless reader builds any object."""
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "MLmodel").write_text(f"!!python/object/apply:os.mkdir ['{trace}']\n")
    uri = sqlite_uri(tmp_path / "mlflow.db")
    client = open_client(uri)
    client.create_registered_model("segmenter")
    client.create_model_version("segmenter", source=packed.as_uri())
    with pytest.raises(UserError):
        resolve_model("models:/segmenter/1", uri)
    assert not trace.exists()
    yaml.unsafe_load((packed / "MLmodel").read_text())  # that it would have run elsewhere
    assert trace.exists()
