"""The predictor: one photo, many phrases, equal every time, masks at the photo's own size."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import ldznet
from ldznet import Predictor
from ldznet.errors import DataFault, UserError
from ldznet.ldm_folder import ldm_digest
from ldznet.modeling import NetworkConfig, build_network, initialise_from_ldm, unet_config_of
from ldznet.prediction_config import PredictionConfig
from ldznet.predictor import PASSES_AT_ONCE, network_size

PHRASES = [
    f"the {colour} {thing}" for colour in ("red", "green", "blue") for thing in ("circle", "sky", "dog")
]


def make_model(folder: Path, ldm: Path, *, kind: str = "ldznet", **config: object) -> Path:
    torch.manual_seed(3)
    network = build_network(NetworkConfig(kind=kind, unet=unet_config_of(ldm), positional_latent_side=8))
    initialise_from_ldm(network, ldm)
    network.save_pretrained(folder)
    PredictionConfig(ldm_source=str(ldm), ldm_digest=ldm_digest(ldm), size=64, **config).save(folder)
    return folder


@pytest.fixture(scope="module")
def model(miniature_ldm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "ldznet", miniature_ldm)


@pytest.fixture(scope="module")
def predictor(model: Path) -> Predictor:
    return Predictor.from_pretrained(model, device="cpu")


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (5, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((160, 100), Image.Resampling.NEAREST)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def test_masks_have_the_photos_size_and_depend_on_the_phrase(
    predictor: Predictor, photo: Image.Image
) -> None:
    predictor.set_image(photo)
    first, second = predictor.predict(PHRASES[:2])
    assert first.phrase == PHRASES[0]
    assert (first.mask.shape, first.mask.dtype) == ((100, 160), np.bool_)
    assert (first.probability.shape, first.probability.dtype) == ((100, 160), np.float32)
    np.testing.assert_array_equal(first.mask, first.probability > predictor.config.threshold)
    assert first.area == first.mask.mean()
    assert not np.array_equal(first.probability, second.probability)


def test_predictions_repeat_to_the_bit(model: Path, predictor: Predictor, photo: Image.Image) -> None:
    predictor.set_image(photo)
    again = Predictor.from_pretrained(model, device="cpu")
    again.set_image(photo)
    for one, two in zip(predictor.predict(PHRASES), again.predict(PHRASES), strict=True):
        np.testing.assert_array_equal(one.probability, two.probability)


def test_any_number_of_phrases_is_batched_and_each_gets_what_it_gets_alone(
    predictor: Predictor, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(PHRASES) > PASSES_AT_ONCE
    predictor.set_image(photo)
    batches = []
    features = predictor._ldm.block_features

    def spy(noisy: torch.Tensor, *arguments: object, **options: object) -> object:
        batches.append(len(noisy))
        return features(noisy, *arguments, **options)

    monkeypatch.setattr(predictor._ldm, "block_features", spy)
    together = predictor.predict(PHRASES)
    assert batches == [PASSES_AT_ONCE, len(PHRASES) - PASSES_AT_ONCE]
    alone = predictor.predict([PHRASES[-1]])[0]
    np.testing.assert_allclose(together[-1].probability, alone.probability, atol=1e-5)
    assert predictor.predict([]) == []


def test_several_timesteps_and_seeds_are_averaged(predictor: Predictor, photo: Image.Image) -> None:
    predictor.set_image(photo)

    def logit(timestep: int, seed: int) -> np.ndarray:
        p = predictor.predict([PHRASES[0]], timesteps=[timestep], seeds=[seed])[0].probability
        return np.log(p / (1 - p))

    draws = [(timestep, seed) for timestep in (300, 500) for seed in (0, 7)]
    single = [logit(*draw) for draw in draws]
    assert all(not np.allclose(single[0], other, atol=1e-4) for other in single[1:])
    averaged = predictor.predict(PHRASES[:3], timesteps=(300, 500), seeds=(0, 7))[0].probability
    # Resizing is linear, so averages before and after it agree.
    np.testing.assert_allclose(averaged, 1 / (1 + np.exp(-np.mean(single, axis=0))), atol=1e-4)
    default = predictor.predict([PHRASES[0]])[0].probability
    told = predictor.predict([PHRASES[0]], timesteps=[400], seeds=[0])[0].probability
    np.testing.assert_array_equal(default, told)


def test_the_photo_is_encoded_once_a_seed(
    predictor: Predictor, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    encode = predictor._ldm.encode_images
    monkeypatch.setattr(
        predictor._ldm, "encode_images", lambda *a, **k: (calls.append(1), encode(*a, **k))[1]
    )
    predictor.set_image(photo)
    for _ in range(3):
        predictor.predict(PHRASES[:2], timesteps=(300, 400, 500))
    assert len(calls) == 1
    predictor.predict(PHRASES[:1], seeds=(0, 1, 2))
    assert len(calls) == 3


def test_resize_is_chosen_by_name_when_the_photo_is_set(predictor: Predictor, photo: Image.Image) -> None:
    predictor.set_image(photo, resize="aspect")
    assert predictor._pixels.shape == (1, 3, 64, 64)  # 80 x 50 floored to multiples of 64, at least 64
    wide = photo.resize((640, 100))
    predictor.set_image(wide, resize="aspect")
    assert predictor._pixels.shape == (1, 3, 64, 128)
    assert predictor.predict(PHRASES[:1])[0].mask.shape == (100, 640)
    predictor.set_image(wide)
    assert predictor._pixels.shape == (1, 3, 64, 64)


@given(width=st.integers(1, 6000), height=st.integers(1, 6000), size=st.sampled_from([64, 384, 512]))
def test_network_sizes_are_multiples_of_64_near_the_asked_area(width: int, height: int, size: int) -> None:
    assert network_size(width, height, size=size, resize="squash") == (size, size)
    sides = network_size(width, height, size=size, resize="aspect")
    assert all(side >= 64 and side % 64 == 0 for side in sides)
    scale = size / (width * height) ** 0.5
    for side, given_side in zip(sides, (width, height), strict=True):
        assert side == 64 or 0 <= given_side * scale - side < 64


@pytest.mark.parametrize(
    "kind", ["PNG", "JPEG turned", "grey", "palette", "alpha", "CMYK", "16 bit", "path", "Pillow"]
)
def test_every_kind_of_photo_gives_a_mask_of_its_upright_size(
    kind: str, predictor: Predictor, photo: Image.Image, tmp_path: Path
) -> None:
    size = (100, 160)
    match kind:
        case "JPEG turned":
            exif = Image.Exif()
            exif[0x0112] = 6  # to be turned by 90 degrees
            given_photo, size = encoded(photo, "JPEG", exif=exif), (160, 100)
        case "grey":
            given_photo = encoded(photo.convert("L"), "PNG")
        case "palette":
            given_photo = encoded(photo.convert("P"), "PNG")
        case "alpha":
            given_photo = encoded(photo.convert("RGBA"), "PNG")
        case "CMYK":
            given_photo = encoded(photo.convert("CMYK"), "JPEG")
        case "16 bit":
            given_photo = encoded(Image.fromarray(np.arange(16000, dtype=np.uint16).reshape(100, 160)), "PNG")
        case "path":
            given_photo = tmp_path / "photo.png"
            given_photo.write_bytes(encoded(photo, "PNG"))
        case "Pillow":
            exif = Image.Exif()
            exif[0x0112] = 8
            given_photo, size = Image.open(io.BytesIO(encoded(photo, "JPEG", exif=exif))), (160, 100)
        case _:
            given_photo = encoded(photo, "PNG")
    predictor.set_image(given_photo)
    assert predictor.predict(PHRASES[:1])[0].mask.shape == size


def test_a_photo_is_turned_once_whoever_opens_it(predictor: Predictor, photo: Image.Image) -> None:
    from ldznet.images import decode_image

    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo, "PNG", exif=exif)
    results = []
    for given_photo in (data, decode_image(data), Image.open(io.BytesIO(data))):
        predictor.set_image(given_photo)
        results.append(predictor.predict(PHRASES[:1])[0].probability)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_a_znet_ignores_timesteps(miniature_ldm: Path, tmp_path: Path, photo: Image.Image) -> None:
    predictor = Predictor.from_pretrained(make_model(tmp_path / "znet", miniature_ldm, kind="znet"))
    predictor.set_image(photo)
    one = predictor.predict(PHRASES[:1], timesteps=(100, 900))[0].probability
    np.testing.assert_array_equal(one, predictor.predict(PHRASES[:1])[0].probability)


def test_an_rgbnet_takes_no_latents(
    miniature_ldm: Path, tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.from_pretrained(make_model(tmp_path / "rgbnet", miniature_ldm, kind="rgbnet"))
    monkeypatch.delattr(type(predictor._ldm), "encode_images")
    predictor.set_image(photo)
    one = predictor.predict(PHRASES[:2])
    assert not np.array_equal(one[0].probability, one[1].probability)
    several = predictor.predict(PHRASES[:2], timesteps=(100, 900), seeds=(1, 2))
    np.testing.assert_array_equal(one[0].probability, several[0].probability)


@pytest.mark.parametrize(
    ("kind", "parts"),
    [("ldznet", {"unet", "vae"}), ("znet", {"vae"}), ("rgbnet", set())],
)
def test_what_a_network_does_not_see_is_not_loaded(
    kind: str, parts: set[str], miniature_ldm: Path, tmp_path: Path
) -> None:
    predictor = Predictor.from_pretrained(make_model(tmp_path / kind, miniature_ldm, kind=kind))
    assert {name for name in ("unet", "vae") if getattr(predictor._ldm, name) is not None} == parts


def test_mistakes_are_told(model: Path, miniature_ldm: Path, tmp_path: Path, photo: Image.Image) -> None:
    predictor = Predictor.from_pretrained(model, device="cpu")
    with pytest.raises(UserError, match=r"set_image\(photo\) comes before"):
        predictor.predict(["a dog"])
    predictor.set_image(photo)
    with pytest.raises(UserError, match="empty phrase"):
        predictor.predict(["a dog", "  "])
    with pytest.raises(UserError, match="timestep 1000 is out of range"):
        predictor.predict(["a dog"], timesteps=[1000])
    with pytest.raises(UserError, match="threshold 1 lies outside"):
        predictor.predict(["a dog"], threshold=1)
    with pytest.raises(UserError, match=r"none\.png cannot be read"):
        predictor.set_image(tmp_path / "none.png")
    with pytest.raises(DataFault, match="not an image"):
        predictor.set_image(b"no image")
    with pytest.raises(UserError, match=r"no prediction\.json"):
        Predictor.from_pretrained(miniature_ldm)
    config = PredictionConfig.load(model)
    make_model(tmp_path / "unknown", miniature_ldm)
    config.model_copy(update={"ldm_source": None, "ldm_digest": None}).save(tmp_path / "unknown")
    with pytest.raises(UserError, match="name it with --ldm"):
        Predictor.from_pretrained(tmp_path / "unknown")
    assert Predictor.from_pretrained(tmp_path / "unknown", ldm=miniature_ldm).config.ldm_source is None
    config.model_copy(update={"ldm_digest": "0" * 64}).save(tmp_path / "unknown")
    with pytest.raises(UserError, match="is another LDM"):
        Predictor.from_pretrained(tmp_path / "unknown")


def test_the_package_gives_its_public_classes_without_importing_torch_first() -> None:
    code = "import sys, ldznet; assert 'torch' not in sys.modules; print(*ldznet.__all__)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(told.split()) == {"FrozenLDM", "LDZNet", "Predictor", "SegmentationScores"}
    for name in told.split():
        assert getattr(ldznet, name).__name__ == name
        assert name in dir(ldznet)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        ldznet.Nothing  # noqa: B018
