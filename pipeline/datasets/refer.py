"""RefCOCO, RefCOCO+ and RefCOCOg in the REFER layout."""

from collections.abc import Iterator
from typing import Any

from ldznet.errors import UserError
from pipeline.datasets.masks import PolygonMask, RleMask
from pipeline.datasets.records import field, json_elements, require_object
from pipeline.datasets.safe_pickle import MAX_BYTES, load_plain_pickle
from pipeline.datasets.sample import MaskSource, Sample
from pipeline.object_store.store import ObjectStore

IMAGE_FOLDER = "train2014"
LAYOUT = "REFER has refcoco/refs(unc).p, refcoco/instances.json (or refcoco+, refcocog) and COCO's images"


class ReferDataset:
    """One of the referring sets, by one of its published splits.

    An expression is a sample; its mask is the referred object's annotation: polygons, filled as by COCO's
    tools, or run lengths. `test` is also given where the refs are split into testA and testB: both together,
    as in REFER. The pickle is read by an own reader that cannot execute anything.
    """

    def __init__(
        self,
        *,
        store: ObjectStore,
        dataset: str = "refcoco",
        split_by: str = "unc",
        images: str = IMAGE_FOLDER,
        name: str | None = None,
    ) -> None:
        """Look whether the files are there.

        Args:
            store: the folder that holds `refcoco/`, `refcoco+/`, `refcocog/`.
            dataset: which of them.
            split_by: whose splits, as in `refs(unc).p`.
            images: the folder of COCO's train2014 images inside the store.
            name: for logs and reports.

        Raises:
            UserError: the folder is missing, empty, or lacks one of the two annotation files.
        """
        self._refs_key = f"{dataset}/refs({split_by}).p"
        self._instances_key = f"{dataset}/instances.json"
        require_object(store, self._refs_key, layout=LAYOUT)
        require_object(store, self._instances_key, layout=LAYOUT)
        self._store = store
        self._images = images.strip("/")
        self._name = name or f"{dataset}-{split_by}"

    @property
    def name(self) -> str:
        """A short name for logs and reports."""
        return self._name

    @property
    def store(self) -> ObjectStore:
        """The store in which `Sample.image` and mask keys are found."""
        return self._store

    def splits(self) -> tuple[str, ...]:
        """The splits that the refs name, sorted, and `test` where it is split further."""
        return _split_names(self._refs())

    def samples(self, split: str) -> Iterator[Sample]:
        """The expressions of one split in the refs' order.

        Raises:
            UserError: the split is not there, a record is malformed, or the pickle is not plain data.
        """
        every = self._refs()
        refs = [(place, ref) for place, ref in every if _in_split(ref["split"], split)]
        if not refs:
            has = ", ".join(_split_names(every)) or "no refs at all"
            raise UserError(f"{self._store.url}/{self._refs_key} has no split {split!r}: it has {has}")
        del every
        masks = self._masks({field(ref, "ann_id", int, place) for place, ref in refs})
        for place, ref in refs:
            yield from self._expressions(place, ref, masks, split)

    def _expressions(
        self, place: str, ref: dict[str, Any], masks: dict[int, MaskSource], split: str
    ) -> Iterator[Sample]:
        image_id = field(ref, "image_id", int, place)
        mask = masks.get(ref["ann_id"])
        if mask is None:
            raise UserError(f"{place}: annotation {ref['ann_id']} is not in {self._instances_key}")
        for sentence in field(ref, "sentences", list, place):
            if not isinstance(sentence, dict):
                raise UserError(f'{place}: "sentences" must be a list of dicts')
            yield Sample(
                image_id=str(image_id),
                label_id=f"{field(ref, 'ref_id', int, place)}_{field(sentence, 'sent_id', int, place)}",
                image=f"{self._images}/COCO_train2014_{image_id:012d}.jpg",
                phrase=field(sentence, "sent", str, place),
                mask=mask,
                split=split,
            )

    def _refs(self) -> list[tuple[str, dict[str, Any]]]:
        info = self._store.stat(self._refs_key)
        place = f"{self._store.url}/{self._refs_key}"
        if info is None:
            raise UserError(f"{place} is missing")
        if info.size > MAX_BYTES:
            raise UserError(f"{place}: a pickle of {info.size} bytes is too large to be REFER's")
        refs = load_plain_pickle(self._store.get(self._refs_key, at_most=MAX_BYTES), place=place)
        if not isinstance(refs, list):
            raise UserError(f"{place}: a list of refs is expected, not {type(refs).__name__}")
        placed = []
        for number, ref in enumerate(refs, start=1):
            if not isinstance(ref, dict):
                raise UserError(f"{place}, ref {number}: a dict is expected")
            field(ref, "split", str, f"{place}, ref {number}")
            placed.append((f"{place}, ref {number}", ref))
        return placed

    def _masks(self, wanted: set[int]) -> dict[int, MaskSource]:
        """The masks of the wanted annotations."""
        sizes: dict[int, tuple[int, int]] = {}  # may follow the annotations in the file
        drawn: dict[int, tuple[str, int, object]] = {}
        for name, place, record in json_elements(self._store, self._instances_key):
            if name == "images":
                sizes[field(record, "id", int, place)] = (
                    field(record, "width", int, place),
                    field(record, "height", int, place),
                )
            elif name == "annotations" and field(record, "id", int, place) in wanted:
                segmentation = field(record, "segmentation", (list, dict), place)
                drawn[record["id"]] = (place, field(record, "image_id", int, place), segmentation)
        return {
            number: _mask(segmentation, place, sizes.get(image_id))
            for number, (place, image_id, segmentation) in drawn.items()
        }


def _in_split(own: str, asked: str) -> bool:
    """REFER's rule: `test` takes testA and testB together."""
    return own == asked or (asked == "test" and own.startswith("test"))


def _split_names(refs: list[tuple[str, dict[str, Any]]]) -> tuple[str, ...]:
    own = {ref["split"] for _, ref in refs}
    return tuple(sorted(own | ({"test"} if any(name.startswith("test") for name in own) else set())))


def _mask(segmentation: object, place: str, size: tuple[int, int] | None) -> MaskSource:
    try:
        if isinstance(segmentation, dict):
            return RleMask.from_coco(segmentation)
        assert isinstance(segmentation, list), "the record's field was checked"
        return PolygonMask.from_polygons(segmentation, rule="coco", annotated_size=size)
    except ValueError as error:
        raise UserError(f'{place}: "segmentation": {error}') from error
