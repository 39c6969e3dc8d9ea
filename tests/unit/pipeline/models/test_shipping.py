"""Models that come with the package: an LDM by its bytes, a network in fp16 that predicts what it predicted."""

from pathlib import Path

import pytest
import torch

from ldznet import builtin_models
from ldznet.builtin_models import DEFAULT_LDM
from ldznet.errors import UserError
from ldznet.ldm_folder import ldm_digest, resolve_ldm
from ldznet.modeling import NetworkConfig, build_network, network_from_pretrained, unet_config_of
from ldznet.prediction_config import PredictionConfig
from pipeline.models.registered import _copy_source, resolve_model
from pipeline.models.shipping import ship_model


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where models come to lie, and are found."""
    monkeypatch.setattr(builtin_models, "WEIGHTS", tmp_path / "weights")
    return tmp_path / "weights"


def model_in(folder: Path, *, ldm: Path, source: str) -> Path:
    torch.manual_seed(0)
    build_network(NetworkConfig(unet=unet_config_of(ldm), positional_latent_side=8)).save_pretrained(folder)
    PredictionConfig(ldm_source=source, ldm_digest=ldm_digest(ldm), size=64).save(folder)
    (folder / "provenance.json").write_text('{"run_id": "of one machine"}')
    return folder


def test_an_ldm_keeps_its_digest_and_its_card(miniature_ldm: Path, weights: Path) -> None:
    place = ship_model(miniature_ldm, name="tiny", weights=weights)
    assert resolve_ldm("builtin:tiny") == place
    assert ldm_digest(place) == ldm_digest(miniature_ldm)
    (place / "README.md").write_text("its card")
    assert ship_model(miniature_ldm, name="tiny", weights=weights) == place
    assert (place / "README.md").read_text() == "its card"


def test_a_network_is_halved_and_found_by_its_name(
    miniature_ldm: Path, weights: Path, tmp_path: Path
) -> None:
    ship_model(miniature_ldm, name="tiny", weights=weights)
    folder = model_in(tmp_path / "model", ldm=miniature_ldm, source="builtin:tiny")
    place = ship_model(folder, name="tiny-ldznet", weights=weights)
    assert resolve_model("builtin:tiny-ldznet") == place
    assert {path.name for path in place.iterdir()} == {"config.json", "model.safetensors", "prediction.json"}
    assert (
        2 * (place / "model.safetensors").stat().st_size < 1.1 * (folder / "model.safetensors").stat().st_size
    )
    before, after = (network_from_pretrained(one).state_dict() for one in (folder, place))
    assert all(torch.equal(before[name].half().float(), after[name]) for name in before)


@pytest.mark.parametrize(
    ("ldm", "brought"),
    [(DEFAULT_LDM, {"scenes-128"}), ("runs/ldm", set()), (None, set())],
)
def test_a_registered_model_brings_its_ldm_where_that_comes_with_the_package(
    ldm: str | None, brought: set[str], tmp_path: Path
) -> None:
    source = _copy_source(tmp_path, ldm=ldm)
    assert (source / "predictor.py").is_file()
    assert {path.name for path in (source / "weights").glob("*")} == brought


def test_what_others_could_not_use_is_refused(miniature_ldm: Path, weights: Path, tmp_path: Path) -> None:
    folder = model_in(tmp_path / "model", ldm=miniature_ldm, source="runs/ldm")
    with pytest.raises(UserError, match="was trained on runs/ldm"):
        ship_model(folder, name="tiny-ldznet", weights=weights)
    with pytest.raises(UserError, match="neither a frozen LDM"):
        ship_model(tmp_path, name="nothing", weights=weights)
    with pytest.raises(UserError, match="neither a frozen LDM"):
        ship_model(tmp_path / "typo", name="nothing", weights=weights)
    assert not weights.exists()


def test_shipping_a_model_onto_itself_or_out_of_the_folder_loses_nothing(
    miniature_ldm: Path, weights: Path
) -> None:
    place = ship_model(miniature_ldm, name="tiny", weights=weights)
    before = sorted(path for path in weights.rglob("*"))
    with pytest.raises(UserError, match="is builtin:tiny itself"):
        ship_model(place, name="tiny", weights=weights)
    for name in ("", "..", ".", "a/b", "../tiny"):
        with pytest.raises(UserError, match="no name for a model"):
            ship_model(miniature_ldm, name=name, weights=weights)
    assert sorted(path for path in weights.rglob("*")) == before
