"""The models that come with the package: small enough, whole, and able to do what they are for."""

import numpy as np
import pytest
from PIL import Image

from ldznet.builtin_models import DEFAULT_LDM, DEFAULT_MODEL, WEIGHTS, builtin_folder
from ldznet.ldm_folder import ldm_digest, resolve_ldm
from ldznet.prediction_config import PredictionConfig
from ldznet.predictor import Predictor
from pipeline.scenes.config import ScenesConfig
from pipeline.scenes.scene import compose_scene

# As in jobs/recipes/scenes_128.yaml.
SCENES = ScenesConfig(
    size=128, nouns=32, held_out_nouns=6, min_objects=1, max_objects=3, min_scale=0.3, max_scale=0.6
)
FIRST = 5000  # scenes of val that choose nothing


def test_they_are_small_and_have_cards() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40e6
    assert max(path.stat().st_size for path in files if "ldznet" not in path.parent.name) < 16e6
    for name in (DEFAULT_LDM, DEFAULT_MODEL):
        folder = builtin_folder(name)
        assert folder is not None
        assert "license: apache-2.0" in (folder / "README.md").read_text()
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pkl", ".ckpt"}]


def test_the_network_belongs_to_the_ldm() -> None:
    folder = builtin_folder(DEFAULT_MODEL)
    assert folder is not None
    config = PredictionConfig.load(folder)
    assert config.ldm_source == DEFAULT_LDM
    assert config.ldm_digest == ldm_digest(resolve_ldm(DEFAULT_LDM))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    folder = builtin_folder(DEFAULT_MODEL)
    assert folder is not None
    return Predictor.from_pretrained(folder)


def test_it_finds_what_a_phrase_names_and_not_what_another_does(predictor: Predictor) -> None:
    right, wrong = [], []
    for number in range(FIRST, FIRST + 12):
        scene = compose_scene(SCENES, split="val", index=number)
        predictor.set_image(Image.fromarray(scene.image))
        found = predictor.predict([phrase.text for phrase in scene.phrases])
        for one, phrase in zip(found, scene.phrases, strict=True):
            right.append(iou(one.mask, phrase.mask))
            wrong += [
                iou(one.mask, other.mask) for other in scene.phrases if not (other.mask & phrase.mask).any()
            ]
    assert np.mean(right) > 0.4
    assert np.mean(right) > 2 * np.mean(wrong)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))
