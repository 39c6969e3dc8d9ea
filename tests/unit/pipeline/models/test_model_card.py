"""The model card: what it tells, what it never tells, and scores that are put into it later."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cache.manifest import Manifest, find_manifest
from pipeline.models.card import add_scores, write_card
from pipeline.models.folder import model_digest
from pipeline.models.origins import data_terms, ldm_origin
from pipeline.object_store.opening import open_store
from pipeline.recipe_file import load_recipe

METRICS = {"miou": 0.3125, "iou_fg": 0.4, "ap": 0.5, "threshold": 0.42}


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    small_recipe_in: Callable[..., Path],
    precompute_here: Callable[..., None],
) -> tuple[Path, Manifest]:
    """A recipe's file and the manifest of what it trains on."""
    path = small_recipe_in(tmp_path_factory.mktemp("card"))
    precompute_here(path)
    recipe = load_recipe(path)
    manifest = find_manifest(open_store(recipe.cache.url), recipe.request_digest("train"))
    assert manifest is not None
    return path, manifest


def card(trained: tuple[Path, Manifest], folder: Path, *overrides: str, **facts: Any) -> str:
    path, manifest = trained
    given = {"manifest": manifest, "step": 4, "metrics": METRICS, "parameters": 1_250_000} | facts
    recipe = load_recipe(path, overrides)
    write_card(folder, recipe=recipe, ldm_digest=manifest.spec.ldm_digest, **given)
    return (folder / "README.md").read_text()


def test_it_tells_what_the_model_came_from(trained: tuple[Path, Manifest], tmp_path: Path) -> None:
    text, manifest = card(trained, tmp_path), trained[1]
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["pipeline_tag"] == "image-segmentation"
    assert header["license"] == "other"
    for fact in (
        "# small-ldznet",
        f"| manifest | `{manifest.manifest_id}` |",
        f"| cache key | `{manifest.cache_key}` |",
        f"digest `{manifest.spec.ldm_digest}`",
        "| data set | folder, split `train` |",
        f"| samples | {manifest.samples} |",
        "| batch | 8 samples |",
        "| learning rate | 0.001 (constant, 0 warm-up steps)",
        "| seed | 0 |",
        "| weights | of step 4, averaged (EMA); length 4 steps |",
        "| mIoU | IoU_FG | AP |",
        "| 31.2 % | 40.0 % | 50.0 % |",
        "Threshold on the sigmoid: 0.42.",
        "untrained miniature",
        "## Intended use and limits",
        "Unknown: the data set does not tell its licence",
        "torch ",
    ):
        assert fact in text, fact


def test_it_tells_no_path_of_this_machine_and_no_secret(
    trained: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trained[0]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter22hunter22")
    text = card(trained, tmp_path, "name=hunter22hunter22")
    assert "hunter22" not in text
    recipe = load_recipe(path)
    for place in (path.parent, recipe.data.root, recipe.ldm.source, Path.home(), tmp_path):
        assert str(place) not in text
    assert "file://" not in text
    assert "s3://" not in text


def test_without_validation_or_cache(trained: tuple[Path, Manifest], tmp_path: Path) -> None:
    text = card(trained, tmp_path, "validate_on=null", metrics={})
    assert "a threshold of 0.5 that nothing chose" in text
    text = card(trained, tmp_path, "train.features=online", manifest=None)
    assert "| features | online, computed in fp32 |" in text
    assert "cache key" not in text


def test_scores_come_in_later_and_again(trained: tuple[Path, Manifest], tmp_path: Path) -> None:
    card(trained, tmp_path)
    before = model_digest(tmp_path)
    assert "not scored yet" in (tmp_path / "README.md").read_text()
    for value in ("31.0", r"32.0 \1"):
        assert add_scores(tmp_path, [["set", "mIoU"], ["test", value]], note="In percent.")
        text = (tmp_path / "README.md").read_text()
        assert f"| set | mIoU |\n|---|---|\n| test | {value} |\n\nIn percent.\n<!-- /scores -->" in text
    assert "31.0" not in text
    assert "not scored yet" not in text
    assert text.count("<!-- scores -->") == 1
    assert model_digest(tmp_path) == before
    (tmp_path / "README.md").write_text("somebody's own\n")
    assert not add_scores(tmp_path, [["set"], ["test"]], note="")
    assert (tmp_path / "README.md").read_text() == "somebody's own\n"


@pytest.mark.parametrize(
    ("source", "licence", "told"),
    [
        (
            "CompVis/stable-diffusion-v1-4",
            "creativeml-openrail-m",
            "CreativeML OpenRAIL-M: its use restrictions",
        ),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5@main", "creativeml-openrail-m", "OpenRAIL-M"),
        ("somebody/else", None, "licence is unknown"),
    ],
)
def test_what_is_known_of_an_ldm(source: str, licence: str | None, told: str, tmp_path: Path) -> None:
    origin = ldm_origin(source, tmp_path)
    assert (origin.licence, origin.hub_id) == (licence, source.partition("@")[0])
    assert told in origin.terms


def test_an_ldm_that_comes_with_the_package_is_on_no_hub(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Small\n")
    origin = ldm_origin("builtin:small", tmp_path)
    assert (origin.hub_id, origin.licence) == (None, "apache-2.0")
    assert origin.name == "builtin:small, which comes with ldznet"
    assert "this project's own small one of generated scenes, under apache-2.0" in origin.terms


def test_a_local_ldm_is_known_by_its_own_card_alone(miniature_ldm: Path, tmp_path: Path) -> None:
    assert ldm_origin(str(miniature_ldm), miniature_ldm).untrained
    copy = tmp_path / "ldm"
    shutil.copytree(miniature_ldm, copy)
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "_untrained": False}))
    origin = ldm_origin(str(copy), copy)
    assert (origin.name, origin.licence, origin.untrained) == ("a local folder", None, False)
    assert "licence is unknown" in origin.terms
    (copy / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n# SD\n")
    assert "OpenRAIL-M" in ldm_origin(str(copy), copy).terms
    (copy / "README.md").write_text("---\n{no: yaml\n---\n")
    assert ldm_origin(str(copy), copy).licence is None


def test_data_terms(trained: tuple[Path, Manifest]) -> None:
    path = trained[0]
    assert "CC BY 4.0: keep the credit" in data_terms(load_recipe(path, ["scenes={}"]))
    assert "Visual Genome" in data_terms(load_recipe(path, ["data.format=phrasecut"]))
    assert "COCO" in data_terms(load_recipe(path, ["data.format=refer"]))
