"""Views: inside the photo, repeatable, and the same part of image and mask."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from pipeline.draws import draw_generator
from pipeline.views import (
    View,
    ViewConfig,
    apply_to_image,
    apply_to_mask,
    published_view,
    shared_view,
    squash_view,
)

SIDES = st.integers(1, 300)


@given(parts=st.lists(st.one_of(st.text(max_size=5), st.integers()), min_size=1, max_size=4))
def test_draws_repeat(parts: list[str | int]) -> None:
    first, second = (draw_generator(*parts).integers(0, 2**63, size=4) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_draws_tell_their_parts_apart() -> None:
    names: list[tuple[str | int, ...]] = [
        ("a", "bc"),
        ("ab", "c"),
        ("abc",),
        ("1",),
        (1,),
        (1, 1),
        (11,),
        ("a", "b", "c"),
    ]
    assert len({int(draw_generator(*parts).integers(0, 2**63)) for parts in names}) == len(names)


def test_draws_are_the_same_in_another_process() -> None:
    draw = "print(draw_generator('view', 7, 'photo', 0).integers(0, 2**63))"
    code = f"from pipeline.draws import draw_generator; {draw}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == int(draw_generator("view", 7, "photo", 0).integers(0, 2**63))
    # Caches made earlier must stay reproducible: this number may change with no release of this project.
    assert draw_generator("view", 7, "photo", 0).bit_generator.random_raw() == 7629723240635240419


@given(width=SIDES, height=SIDES, seed=st.integers(0, 99), draw=st.integers(0, 9))
def test_shared_views_are_squares_inside(width: int, height: int, seed: int, draw: int) -> None:
    view = shared_view(seed=seed, image_id="photo", draw=draw, width=width, height=height, size=64)
    left, top, right, bottom = view.box
    assert view.width == view.height == min(width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert view == shared_view(seed=seed, image_id="photo", draw=draw, width=width, height=height, size=64)


def test_shared_views_reach_both_ends_and_differ_by_draw() -> None:
    offsets = {
        shared_view(seed=0, image_id="i", draw=draw, width=14, height=10, size=64).left for draw in range(100)
    }
    assert offsets == {0, 1, 2, 3, 4}
    tall = {
        shared_view(seed=0, image_id="i", draw=draw, width=10, height=12, size=64).top for draw in range(50)
    }
    assert tall == {0, 1, 2}


@st.composite
def masks(draw: st.DrawFn) -> NDArray[np.bool_]:
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    mask = np.zeros((height, width), dtype=np.bool_)
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    mask[top : top + draw(st.integers(1, 20)), left : left + draw(st.integers(1, 20))] = True
    return mask


@given(mask=masks(), seed=st.integers(0, 50), sample=st.text(max_size=4))
def test_published_views_follow_the_rule(mask: NDArray[np.bool_], seed: int, sample: str) -> None:
    view = published_view(seed=seed, sample_id=sample, draw=0, mask=mask, size=64)
    height, width = mask.shape
    side = min(height, width)
    # The rule written out, square by square.
    offsets = draw_generator("published view", seed, sample, 0).integers(
        0, max(mask.shape) - side, 50, endpoint=True
    )
    best, most = None, -1
    for offset in offsets:
        square = mask[:, offset : offset + side] if width > height else mask[offset : offset + side, :]
        if square.sum() > 0.05 * side * side:
            best = offset
            break
        if square.sum() > most:
            best, most = offset, square.sum()
    expected = (best, 0) if width > height else (0, best)
    assert (view.left, view.top, view.width, view.height) == (*expected, side, side)


def test_published_views_find_a_small_object_at_the_edge() -> None:
    mask = np.zeros((100, 400), dtype=np.bool_)
    mask[40:60, 380:400] = True  # 4 % of any square
    view = published_view(seed=1, sample_id="s", draw=0, mask=mask, size=64)
    tries = draw_generator("published view", 1, "s", 0).integers(0, 300, 50, endpoint=True)
    assert view.left == max(tries) > 280


@settings(deadline=None)
@given(mask=masks(), size=st.sampled_from([64, 128]), seed=st.integers(0, 9))
def test_image_and_mask_stay_aligned(mask: NDArray[np.bool_], size: int, seed: int) -> None:
    height, width = mask.shape
    image = Image.fromarray(np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 255)
    for view in (
        squash_view(width=width, height=height, size=size),
        shared_view(seed=seed, image_id="i", draw=0, width=width, height=height, size=size),
        published_view(seed=seed, sample_id="s", draw=0, mask=mask, size=size),
    ):
        pixels, seen = apply_to_image(image, view), apply_to_mask(mask, view)
        assert (pixels.shape, pixels.dtype) == ((size, size, 3), np.uint8)
        assert (seen.shape, seen.dtype) == ((size, size), np.bool_)
        left, top, right, bottom = view.box
        part = mask[top:bottom, left:right]
        assert seen.any() <= part.any()
        if part.any() and size >= max(part.shape):  # enlarged: a pixel's own middle keeps its own value
            assert seen.any()
            assert (pixels[seen, 0] >= 63).all()  # at least a quarter of the weight, by two axes
            assert (pixels[~seen, 0] <= 192).all()


def test_mask_keeps_its_pixels_at_whole_factors() -> None:
    mask = np.random.default_rng(0).random((32, 48)) > 0.5
    view = View(left=8, top=0, width=32, height=32, size=64)
    np.testing.assert_array_equal(
        apply_to_mask(mask, view), mask[:, 8:40].repeat(2, axis=0).repeat(2, axis=1)
    )


def test_nothing_outside_the_box_bleeds_in() -> None:
    pixels = np.full((300, 600, 3), 255, dtype=np.uint8)
    pixels[:, 150:450] = 7
    assert set(
        np.unique(
            apply_to_image(Image.fromarray(pixels), View(left=150, top=0, width=300, height=300, size=64))
        )
    ) == {7}


def test_a_view_outside_is_our_bug() -> None:
    with pytest.raises(AssertionError, match="not inside"):
        apply_to_mask(np.ones((10, 10), dtype=np.bool_), View(left=5, top=0, width=10, height=10, size=64))


@pytest.mark.parametrize("wrong", [{"size": 100}, {"size": 0}, {"policy": "zoom"}, {"sise": 64}])
def test_configuration_is_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ViewConfig(**wrong)
