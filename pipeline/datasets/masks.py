"""Where masks come from: polygons, run lengths, files."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from ldznet.errors import DataFault
from ldznet.images import decode_mask
from pipeline.datasets.polygons import fill_coco, fill_phrasecut
from pipeline.datasets.rle import mask_from_runs, runs_from_text
from pipeline.datasets.sample import ReadObject

PolygonRule = Literal["phrasecut", "coco"]

_POINT_BYTES = 16  # two float64


@dataclass(frozen=True, kw_only=True, slots=True)
class PolygonMask:
    """The union of polygons in the image's pixels; the points are packed, as there are millions of them."""

    points: bytes  # float64 x,y of all polygons, little-endian
    lengths: tuple[int, ...]  # points a polygon
    rule: PolygonRule = "phrasecut"  # whose tools are followed at the outline
    annotated_size: tuple[int, int] | None = None  # width, height that the annotations were made on

    @classmethod
    def from_polygons(
        cls,
        polygons: Iterable[Sequence[Sequence[float]]],
        *,
        rule: PolygonRule = "phrasecut",
        annotated_size: tuple[int, int] | None = None,
    ) -> Self:
        """From polygons `[[x, y], ...]`.

        Raises:
            ValueError: not pairs of numbers.
        """
        try:
            arrays = [np.asarray(polygon, dtype="<f8").reshape(-1, 2) for polygon in polygons]
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError("a polygon is not a list of [x, y]") from error
        return cls(
            points=b"".join(array.tobytes() for array in arrays),
            lengths=tuple(len(array) for array in arrays),
            rule=rule,
            annotated_size=annotated_size,
        )

    def objects(self) -> tuple[str, ...]:
        """See `MaskSource.objects`."""
        return ()

    def identity(self, digest: Callable[[str], str]) -> str:  # noqa: ARG002 - needs no object
        """See `MaskSource.identity`."""
        shape = f"{self.rule};{self.annotated_size};{self.lengths};".encode()
        return f"polygons:{hashlib.sha256(shape + self.points).hexdigest()}"

    def decode(self, read: ReadObject, *, width: int, height: int) -> NDArray[np.bool_]:  # noqa: ARG002 - needs no object
        """See `MaskSource.decode`."""
        _check_size("annotated for", self.annotated_size, width=width, height=height)
        points = np.frombuffer(self.points, dtype="<f8").reshape(-1, 2)
        limits = np.array([width, height])
        if not np.isfinite(points).all():
            raise DataFault("a polygon holds a coordinate that is no number")
        if (points < -limits).any() or (points > 2 * limits).any():
            raise DataFault("a polygon reaches far outside the image")
        polygons = np.split(points, np.cumsum(self.lengths)[:-1])
        fill = fill_coco if self.rule == "coco" else fill_phrasecut
        return _not_empty(fill(polygons, width=width, height=height))


@dataclass(frozen=True, kw_only=True, slots=True)
class RleMask:
    """COCO's run lengths, compressed (`bytes`) or plain."""

    counts: bytes | tuple[int, ...]
    size: tuple[int, int]  # width, height (COCO writes height, width)

    @classmethod
    def from_coco(cls, segmentation: object) -> Self:
        """From COCO's `{"size": [height, width], "counts": ...}`.

        Raises:
            ValueError: not such an object.
        """
        match segmentation:
            case {"size": [int(height), int(width)], "counts": str(text)}:
                return cls(counts=text.encode("utf-8", "replace"), size=(width, height))
            case {"size": [int(height), int(width)], "counts": bytes(text)}:
                return cls(counts=text, size=(width, height))
            case {"size": [int(height), int(width)], "counts": [*runs]} if all(
                type(run) is int for run in runs
            ):
                return cls(counts=tuple(runs), size=(width, height))
            case _:
                raise ValueError('run lengths must be {"size": [height, width], "counts": ...}')

    def objects(self) -> tuple[str, ...]:
        """See `MaskSource.objects`."""
        return ()

    def identity(self, digest: Callable[[str], str]) -> str:  # noqa: ARG002 - needs no object
        """See `MaskSource.identity`."""
        counts = self.counts if isinstance(self.counts, bytes) else repr(self.counts).encode()
        return f"rle:{hashlib.sha256(f'{self.size};'.encode() + counts).hexdigest()}"

    def decode(self, read: ReadObject, *, width: int, height: int) -> NDArray[np.bool_]:  # noqa: ARG002 - needs no object
        """See `MaskSource.decode`."""
        _check_size("annotated for", self.size, width=width, height=height)
        try:
            plain = self.counts
            runs = runs_from_text(plain) if isinstance(plain, bytes) else np.array(plain, dtype=np.int64)
            mask = mask_from_runs(runs, width=width, height=height)
        except (ValueError, OverflowError) as error:
            raise DataFault(f"damaged run lengths: {error}") from error
        return _not_empty(mask)


@dataclass(frozen=True, kw_only=True, slots=True)
class FileMask:
    """An image file of the photo's own size (after EXIF rotation); non-zero pixels are the phrase's."""

    key: str

    def objects(self) -> tuple[str, ...]:
        """See `MaskSource.objects`."""
        return (self.key,)

    def identity(self, digest: Callable[[str], str]) -> str:
        """See `MaskSource.identity`."""
        return f"file:{digest(self.key)}"

    def decode(self, read: ReadObject, *, width: int, height: int) -> NDArray[np.bool_]:
        """See `MaskSource.decode`."""
        try:
            data = read(self.key)
        except KeyError as error:
            raise DataFault(f"mask {self.key} is missing") from error
        try:
            mask = decode_mask(data)
        except DataFault as fault:
            raise DataFault(f"mask {self.key}: {fault}") from fault
        _check_size(f"{self.key} is", (mask.shape[1], mask.shape[0]), width=width, height=height)
        return _not_empty(mask)


def _check_size(what: str, size: tuple[int, int] | None, *, width: int, height: int) -> None:
    if size is not None and size != (width, height):
        raise DataFault(
            f"the mask does not fit: {what} {size[0]} x {size[1]}, the image is {width} x {height}"
        )


def _not_empty(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if not mask.any():
        raise DataFault("the mask is empty")
    return mask
