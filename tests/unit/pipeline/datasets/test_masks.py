"""Masks from polygons, run lengths and files."""

import contextlib
import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from ldznet.errors import DataFault
from pipeline.datasets.masks import FileMask, PolygonMask, RleMask
from pipeline.datasets.rle import mask_from_runs, mask_to_runs, runs_from_text, runs_to_text

MASKS = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))


def _nothing(key: str) -> bytes:
    raise KeyError(key)


def _png(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def _digest(key: str) -> str:
    return f"digest of {key}"


@given(mask=MASKS)
def test_runs_round_trip(mask: np.ndarray) -> None:
    height, width = mask.shape
    runs = mask_to_runs(mask)
    np.testing.assert_array_equal(runs_from_text(runs_to_text(runs)), runs)
    np.testing.assert_array_equal(mask_from_runs(runs, width=width, height=height), mask)


@given(runs=st.lists(st.integers(0, 2**31), max_size=30))
def test_any_numbers_survive_the_text(runs: list[int]) -> None:
    assert runs_from_text(runs_to_text(runs)).tolist() == runs


def test_runs_are_pycocotools() -> None:
    """Texts that pycocotools 2.0 wrote for these masks."""
    mask = np.zeros((7, 9), dtype=np.bool_)
    mask[2:5, 3:8] = True
    mask[0, 0] = True
    assert runs_to_text(mask_to_runs(mask)) == COCO_SQUARE
    np.testing.assert_array_equal(mask_from_runs(runs_from_text(COCO_SQUARE), width=9, height=7), mask)


COCO_SQUARE = b"01f02^O00000005"
COCO_POLYGON = [[2.5, 1.2], [15.9, 3.3], [12.1, 13.7], [7.0, 9.4], [-3.0, 18.0]]
COCO_POLYGON_RUNS = b"8762M31O101N1O1001O00100O00M3M3No1"


@given(text=st.binary(max_size=40))
def test_any_text_is_runs_or_a_fault(text: bytes) -> None:
    with contextlib.suppress(DataFault):  # anything else fails the test
        assert RleMask(counts=text, size=(4, 5)).decode(_nothing, width=4, height=5).shape == (5, 4)


def test_coco_objects() -> None:
    mask = np.array([[0, 1, 1], [0, 0, 1]], dtype=np.bool_)
    runs = [2, 1, 1, 2]
    for counts in (runs, runs_to_text(runs).decode(), runs_to_text(runs)):
        source = RleMask.from_coco({"size": [2, 3], "counts": counts})
        np.testing.assert_array_equal(source.decode(_nothing, width=3, height=2), mask)
    for wrong in ({"counts": "1"}, {"size": [2, 3], "counts": [1.5]}, {"size": [2], "counts": "1"}, [1, 2]):
        with pytest.raises(ValueError, match="run lengths must be"):
            RleMask.from_coco(wrong)


@pytest.mark.parametrize("runs", [(7,), (3, 3, -1, 1), (2, 3), (2**70,), (-2, 8)])
def test_wrong_runs_are_faults(runs: tuple[int, ...]) -> None:
    with pytest.raises(DataFault, match="damaged run lengths"):
        RleMask(counts=runs, size=(3, 2)).decode(_nothing, width=3, height=2)


def test_phrasecut_fills_inside_and_outline_and_joins_instances() -> None:
    mask = PolygonMask.from_polygons(
        [[[1.9, 1.2], [4.7, 1.0], [4.2, 3.9], [1.1, 3.1]], [[6, 0], [7, 0]], [[0, 0]]]
    )
    wanted = np.zeros((5, 8), dtype=np.bool_)
    wanted[1:4, 1:5] = True
    wanted[0, 6:8] = True  # two corners are a line; one is nothing
    np.testing.assert_array_equal(mask.decode(_nothing, width=8, height=5), wanted)


def test_coco_polygons_are_pycocotools() -> None:
    """The runs that pycocotools 2.0 made of this polygon on 20 x 16 pixels; a corner lies outside."""
    mask = PolygonMask.from_polygons([COCO_POLYGON], rule="coco").decode(_nothing, width=20, height=16)
    assert runs_to_text(mask_to_runs(mask)) == COCO_POLYGON_RUNS


@pytest.mark.parametrize("rule", ["phrasecut", "coco"])
def test_polygon_faults(rule: str) -> None:
    def decode(polygons: list[list[list[float]]], size: tuple[int, int] | None = None) -> np.ndarray:
        mask = PolygonMask.from_polygons(polygons, rule=rule, annotated_size=size)  # type: ignore[arg-type]
        return mask.decode(_nothing, width=10, height=10)

    square: list[list[float]] = [[1, 1], [8, 1], [8, 8], [1, 8]]
    assert 49 <= decode([square]).sum() <= 64
    with pytest.raises(DataFault, match="empty"):
        decode([])
    with pytest.raises(DataFault, match="no number"):
        decode([[[1, 1], [float("nan"), 1], [3, 3]]])
    with pytest.raises(DataFault, match="far outside"):
        decode([[[1, 1], [1e12, 1], [3, 3]]])
    with pytest.raises(DataFault, match=r"annotated for 10 x 12, the image is 10 x 10"):
        decode([square], size=(10, 12))


@pytest.mark.parametrize("wrong", [[[[1, 2, 3]]], [["x", "y"]], [[[1, 2], [3]]], [5], [[{"x": 1}]]])
def test_malformed_polygons_are_refused_at_once(wrong: list) -> None:
    with pytest.raises(ValueError, match="not a list of"):
        PolygonMask.from_polygons(wrong)


def test_file_masks() -> None:
    mask = np.zeros((4, 6), dtype=np.bool_)
    mask[1, 2] = True
    objects = {"m.png": _png(mask), "empty.png": _png(mask & False), "broken.png": b"nonsense"}
    read = objects.__getitem__
    np.testing.assert_array_equal(FileMask(key="m.png").decode(read, width=6, height=4), mask)
    for key, size, reason in [
        ("m.png", (4, 6), r"m\.png is 6 x 4, the image is 4 x 6"),
        ("empty.png", (6, 4), "empty"),
        ("broken.png", (6, 4), r"broken\.png: not an image"),
        ("none.png", (6, 4), r"none\.png is missing"),
    ]:
        with pytest.raises(DataFault, match=reason):
            FileMask(key=key).decode(read, width=size[0], height=size[1])


def test_identities_follow_the_mask() -> None:
    square = [[[1.0, 1.0], [8.0, 1.0], [8.0, 8.0]]]
    sources = [
        PolygonMask.from_polygons(square),
        PolygonMask.from_polygons(square, rule="coco"),
        PolygonMask.from_polygons(square, annotated_size=(10, 10)),
        PolygonMask.from_polygons([[[1.0, 1.0], [8.0, 1.0]], [[8.0, 8.0]]]),
        PolygonMask.from_polygons([[[1.0, 1.0], [8.0, 1.0], [8.0, 8.1]]]),
        RleMask(counts=b"02", size=(1, 2)),
        RleMask(counts=b"02", size=(2, 1)),
        RleMask(counts=(0, 2), size=(2, 1)),
        FileMask(key="a"),
        FileMask(key="b"),
    ]
    assert len({source.identity(_digest) for source in sources}) == len(sources)
    for source in sources:
        again = pickle.loads(pickle.dumps(source))
        assert (again, hash(again)) == (source, hash(source))
        assert again.identity(_digest) == source.identity(_digest)
        assert len(pickle.dumps(source)) < 400
