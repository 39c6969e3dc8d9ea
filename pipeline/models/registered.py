"""Trained networks in MLflow's model registry: put there with what serving them needs, and found again."""

import atexit
import base64
import importlib.metadata
import io
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import ldznet
from ldznet.builtin_models import WEIGHTS, builtin_folder
from ldznet.errors import UserError
from ldznet.prediction_config import PredictionConfig
from pipeline.models.folder import model_digest
from pipeline.tracking.client import open_client, tracking_failures
from pipeline.tracking.config import check_store
from pipeline.tracking.redaction import redacted_text
from pipeline.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

log = logging.getLogger(__name__)

# models:/NAME@ALIAS or models:/NAME/VERSION
_REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[\w\-]+)|/(?P<version>\d+))")
_DIGEST_TAG = "ldznet_digest"  # of weights and configuration: equal ones are registered once
_CODE = Path(__file__).with_name("registered_code.py")
_REQUIREMENTS = (
    "torch", "diffusers", "transformers", "safetensors", "numpy", "pandas", "pillow", "pydantic", "mlflow",
)  # fmt: skip


def register_model(
    tracker: Tracker, model_folder: Path, *, name: str, alias: str | None = None
) -> str | None:
    """Log a model folder with the tracker's run and register it; an equal model that is registered stays the only one.

    The artifact holds the folder, the source of `ldznet` and a code file: no pickle. The frozen LDM is not in
    it; the folder names it.

    Args:
        tracker: Of the run that made the model.
        model_folder: As `save_pretrained` wrote it.
        name: In the registry.
        alias: Moved to this version, such as `best`.

    Returns:
        The version, an older one where its weights and configuration are equal; None where tracking is off or
        MLflow is away.
    """
    if not model_folder.is_dir():
        raise UserError(f"there is no model folder {model_folder}")

    digest = model_digest(model_folder)

    def record(client: "MlflowClient", run_id: str) -> str:
        version = _equal_version(client, name=name, digest=digest)
        if version is None:
            logged = _log(client, run_id, model_folder, name=name)
            version = _register(client, logged, name=name, digest=digest)
        if alias is not None:
            client.set_registered_model_alias(name, alias, version)
        return version

    return tracker.use(f"registering {name}", record)


def set_alias(tracker: Tracker, name: str, version: str, *, alias: str) -> None:
    """Let an alias of a registered model name this version. Nothing happens where MLflow is away or off."""
    tracker.use(
        f"naming {name} {alias}",
        lambda client, _: client.set_registered_model_alias(name, alias, version),
    )


def resolve_model(
    reference: str | Path, tracking_uri: str | None = None, *, folder: Path | None = None
) -> Path:
    """The local model folder that a reference names.

    Args:
        reference: A folder, `builtin:NAME`, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        tracking_uri: Where the registry is; MLFLOW_TRACKING_URI unless told.
        folder: Where a model that is not on this machine is downloaded to; unless told, a temporary folder, once a
            process, which removes it as it ends.

    Raises:
        UserError: No such folder, model, alias or version, or no registry to ask.
    """
    text = str(reference)
    shipped = builtin_folder(text)
    if shipped is not None:
        return shipped
    if not text.startswith("models:"):
        if not Path(text).is_dir():
            raise UserError(f"there is no model folder {text}: give one, or models:/NAME@ALIAS")
        return Path(text)
    match, uri = _asked(text, tracking_uri)
    with _told(match, uri):
        version = _asked_version(match, uri)
        name = match["name"]
        if folder is None:
            packed = _downloaded(uri, name, version)
        else:
            packed = _download(uri, open_client(uri).get_model_version_download_uri(name, version), folder)
    return _model_folder(packed, text)


def pinned(reference: str, tracking_uri: str | None = None) -> str:
    """A reference that goes on naming the same model when an alias is moved: `models:/NAME@ALIAS` by its version.

    Raises:
        UserError: as `resolve_model`.
    """
    if not reference.startswith("models:"):
        return reference
    match, uri = _asked(reference, tracking_uri)
    with _told(match, uri):
        return f"models:/{match['name']}/{_asked_version(match, uri)}"


def _asked(text: str, tracking_uri: str | None) -> tuple[re.Match[str], str]:
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise UserError(f"{text!r} names no model: write models:/NAME@ALIAS or models:/NAME/VERSION")
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise UserError(f"where is {text}? Give --tracking-uri or set MLFLOW_TRACKING_URI")
    return match, check_store(uri)


def _log(client: "MlflowClient", run_id: str, model_folder: Path, *, name: str) -> "LoggedModel":
    """Put MLflow's model folder, made of ours, among the run's outputs."""
    from mlflow.entities import LoggedModelOutput

    experiment = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(experiment, name=name, source_run_id=run_id)
    with tempfile.TemporaryDirectory() as scratch:
        packed = Path(scratch) / "model"
        _pack(model_folder, packed, model_id=logged.model_id)
        client.log_model_artifacts(logged.model_id, str(packed))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return logged


def _pack(model_folder: Path, packed: Path, *, model_id: str) -> None:
    """Write MLflow's model folder: MLmodel, the code file, `ldznet`'s source, the model folder."""
    import mlflow.pyfunc
    from mlflow.models import Model

    with tempfile.TemporaryDirectory() as scratch:
        source = _copy_source(Path(scratch), ldm=PredictionConfig.load(model_folder).ldm_source)
        mlflow.pyfunc.save_model(
            path=str(packed),
            mlflow_model=Model(model_id=model_id),
            python_model=str(_CODE),
            artifacts={"model": str(model_folder)},
            code_paths=[str(source)],
            signature=_signature(),
            input_example=_input_example(),
            model_config={"ldm": "", "paths": False},
            pip_requirements=[f"{package}=={_version(package)}" for package in _REQUIREMENTS],
        )


def _copy_source(scratch: Path, *, ldm: str | None) -> Path:
    """`ldznet`'s source, with the frozen LDM where it is one that comes with the package, and no other weights."""
    source = scratch / "ldznet"
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", WEIGHTS.name)
    shutil.copytree(Path(ldznet.__file__).parent, source, ignore=ignored)
    shipped = builtin_folder(ldm) if ldm is not None else None
    if shipped is not None:
        shutil.copytree(shipped, source / WEIGHTS.name / shipped.name)
    return source


def _equal_version(client: "MlflowClient", *, name: str, digest: str) -> str | None:
    """The newest usable version with this digest."""
    found = client.search_model_versions(f"name = '{name}' AND tag.{_DIGEST_TAG} = '{digest}'")
    usable = [int(version.version) for version in found if version.status == "READY"]
    return str(max(usable)) if usable else None


def _register(client: "MlflowClient", logged: "LoggedModel", *, name: str, digest: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Its location rather than models:/ID, which a database store looks up in the process's global store.
    made = client.create_model_version(
        name,
        source=logged.artifact_location,
        run_id=logged.source_run_id,
        model_id=logged.model_id,
        tags={_DIGEST_TAG: digest},
    )
    return str(made.version)


@contextmanager
def _told(match: re.Match[str], uri: str) -> Iterator[None]:
    """What MLflow refuses, as the user's mistake."""
    try:
        yield
    except tracking_failures() as error:
        reason = redacted_text(str(error).strip().partition("\n")[0])
        raise UserError(f"{match[0]} was not found at {redacted_text(uri)}: {reason}") from error


def _asked_version(match: re.Match[str], uri: str) -> str:
    if match["alias"] is None:
        return match["version"]
    return str(open_client(uri).get_model_version_by_alias(match["name"], match["alias"]).version)


@cache
def _downloaded(uri: str, name: str, version: str) -> Path:
    """The artifact where it lies, if it is this machine's; else one copy, for as long as this process lives."""
    location = open_client(uri).get_model_version_download_uri(name, version)
    if urlsplit(location).scheme in {"", "file"}:
        return _download(uri, location, None)
    folder = tempfile.mkdtemp(prefix="ldznet-registered-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return _download(uri, location, Path(folder))


def _download(uri: str, location: str, folder: Path | None) -> Path:
    from mlflow.artifacts import download_artifacts

    destination = None if folder is None else str(folder)
    return Path(download_artifacts(artifact_uri=location, dst_path=destination, tracking_uri=uri))


def _model_folder(packed: Path, text: str) -> Path:
    import yaml

    try:
        described: dict[str, Any] = yaml.safe_load((packed / "MLmodel").read_text(encoding="utf-8"))
        inner = packed / described["flavors"]["python_function"]["artifacts"]["model"]["path"]
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{text} was not registered by this project: it holds no model folder") from error
    if not inner.resolve().is_relative_to(packed.resolve()) or not inner.is_dir():
        raise UserError(f"{text} was not registered by this project: it holds no model folder")
    return inner


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, Schema

    return ModelSignature(
        # Bytes or base64 text: no single type of MLflow's says that.
        inputs=Schema([ColSpec(AnyType(), "image"), ColSpec(DataType.string, "phrase")]),
        outputs=Schema([ColSpec(DataType.string, "mask_png"), ColSpec(DataType.double, "area")]),
    )


def _input_example() -> Any:
    import pandas as pd  # type: ignore[import-untyped]
    from PIL import Image

    buffer = io.BytesIO()
    photo = Image.new("RGB", (64, 64), (222, 226, 230))
    photo.paste((201, 42, 42), (16, 16, 48, 48))
    photo.save(buffer, format="PNG")
    image = base64.b64encode(buffer.getvalue()).decode("ascii")
    return pd.DataFrame({"image": [image, image], "phrase": ["the red square", "the background"]})


def _version(package: str) -> str:
    # Without the local part: a build for one machine's torch (`+cpu`) is in no registry.
    return importlib.metadata.version(package).partition("+")[0]
