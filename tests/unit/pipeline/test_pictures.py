"""Pictures: overlays, panels, curves."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.pictures import (
    PREDICTION,
    TRUTH,
    Curve,
    overlay_heat,
    overlay_mask,
    plot_curves,
    png_bytes,
    side_by_side,
    smoothed,
    stacked,
)

GREY = Image.new("RGB", (80, 60), (120, 120, 120))


def square(height: int = 60, width: int = 80) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = True
    return mask


def test_overlay_tints_inside_outlines_and_dims_outside() -> None:
    shown = np.asarray(overlay_mask(GREY, square(), colour=TRUTH, opacity=0.5))
    assert tuple(shown[30, 40]) == tuple(round((120 + part) / 2) for part in TRUTH)
    assert tuple(shown[15, 40]) == TRUTH
    assert tuple(shown[2, 2]) == (66, 66, 66)


def test_overlay_scales_the_mask_and_takes_any_mode() -> None:
    large = overlay_mask(GREY.convert("L"), square(12, 16))
    assert large.size == (80, 60)
    assert np.array_equal(np.asarray(large), np.asarray(overlay_mask(GREY, square())))


def test_overlay_shows_the_truth_as_a_white_line() -> None:
    shown = np.asarray(overlay_mask(GREY, np.zeros((60, 80), dtype=bool), truth=square()))
    assert tuple(shown[15, 40]) == (255, 255, 255)
    assert tuple(shown[30, 40]) == (66, 66, 66)


def test_a_mask_of_everything_has_no_outline() -> None:
    shown = np.asarray(overlay_mask(GREY, np.ones((60, 80), dtype=bool), opacity=0.5))
    assert {tuple(pixel) for pixel in shown.reshape(-1, 3)} == {
        tuple(int(np.float32((120 + part) / 2).round()) for part in PREDICTION)
    }


def test_heat_is_hottest_where_values_are_highest() -> None:
    values = np.zeros((6, 8), dtype=np.float32)
    values[3, 4] = 5
    shown = np.asarray(overlay_heat(GREY, values)).sum(axis=2)
    assert np.unravel_index(shown.argmax(), shown.shape) == pytest.approx((34, 44), abs=6)
    flat = np.asarray(overlay_heat(GREY, np.ones((6, 8))))
    assert (flat == flat[0, 0]).all()


def test_panels_stand_side_by_side_at_one_height() -> None:
    wide, tall = Image.new("RGB", (200, 100), (255, 0, 0)), Image.new("RGB", (50, 100), (0, 0, 255))
    row = side_by_side([("image", wide), ("a caption much longer than its picture", tall)], height=64)
    pixels = np.asarray(row)
    assert (pixels == (255, 0, 0)).all(axis=2).sum() == 128 * 64
    assert (pixels == (0, 0, 255)).all(axis=2).sum() == 32 * 64
    titled = side_by_side([("image", wide)], title="the red one", height=64)
    assert titled.height > row.height
    sheet = stacked([row, titled])
    assert sheet.size == (max(row.width, titled.width), row.height + titled.height)


def test_png_holds_the_same_pixels() -> None:
    again = Image.open(io.BytesIO(png_bytes(GREY)))
    assert again.format == "PNG"
    assert np.array_equal(np.asarray(again), np.asarray(GREY))


@pytest.mark.parametrize("log_scale", [False, True])
def test_curves_are_drawn_on_a_transparent_ground(log_scale: bool) -> None:
    curves = [
        Curve(name=name, steps=range(90), values=np.geomspace(2, end, 90))
        for name, end in (("a", 1), ("b", 0.1))
    ]
    drawn = Image.open(io.BytesIO(plot_curves(curves, y_label="loss", log_scale=log_scale))).convert("RGBA")
    alpha = np.asarray(drawn)[..., 3]
    assert alpha[0, 0] == 0
    assert 0.01 < (alpha > 0).mean() < 0.5


def test_smoothing_keeps_length_lines_and_short_curves() -> None:
    assert smoothed([]) == []
    assert smoothed([3.0, 1.0]) == [3.0, 1.0]
    line = [0.5 * step for step in range(200)]
    assert smoothed(line) == pytest.approx(line)
    noisy = np.random.default_rng(0).normal(size=600)
    assert np.std(smoothed(noisy)) < 0.4 * np.std(noisy)
