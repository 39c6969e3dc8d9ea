"""PhraseCut's own layout: `refer_{split}.json`, `image_data_split3000.json`, `images/{image_id}.jpg`."""

from collections.abc import Iterator
from typing import Any

from ldznet.errors import UserError
from pipeline.datasets.masks import PolygonMask
from pipeline.datasets.records import LabelNames, field, json_elements, require_object
from pipeline.datasets.sample import Sample
from pipeline.object_store.store import ObjectStore

SPLITS = ("train", "val", "test", "miniv")
SIZES = "image_data_split3000.json"
LAYOUT = (
    f"PhraseCut has {SIZES}, refer_train.json, refer_val.json, refer_test.json, refer_miniv.json and images/"
)

# Images whose annotated size differs from the file's; CLIPSeg and the paper leave them out.
EXCLUDED_IMAGES = frozenset(
    (
        61530,
        61564,
        150333,
        150344,
        150417,
        150516,
        285665,
        285743,
        285761,
        285814,
        286065,
        286093,
        498010,
        498042,
        498187,
        498246,
        498269,
    )
)


class PhraseCutDataset:
    """PhraseCut (Wu et al., CVPR 2020), or anything in its layout.

    Annotation files are read as they are needed, a chunk at a time. A mask is the union of all polygons of
    all instances, filled as PhraseCut's own tools do.
    """

    def __init__(self, *, store: ObjectStore, name: str = "phrasecut") -> None:
        """Look whether the folder is one.

        Raises:
            UserError: the folder is missing, empty, or not in PhraseCut's layout.
        """
        require_object(store, SIZES, layout=LAYOUT)
        self._store = store
        self._name = name

    @property
    def name(self) -> str:
        """A short name for logs and reports."""
        return self._name

    @property
    def store(self) -> ObjectStore:
        """The store in which `Sample.image` and mask keys are found."""
        return self._store

    def splits(self) -> tuple[str, ...]:
        """Those of train, val, test and miniv that are there."""
        return tuple(split for split in SPLITS if self._store.stat(_annotations(split)) is not None)

    def samples(self, split: str) -> Iterator[Sample]:
        """The phrases of one split in the file's order, without those about excluded images.

        Raises:
            UserError: the split is not there, or its file is malformed or without phrases.
        """
        if split not in self.splits():
            has = ", ".join(self.splits()) or "none"
            raise UserError(f"{self._store.url} has no split {split!r}: it has {has}; {LAYOUT}")
        sizes = self._sizes()
        labels = LabelNames()
        found = False
        for _, place, task in json_elements(self._store, _annotations(split)):
            image_id = field(task, "image_id", int, place)
            if image_id not in EXCLUDED_IMAGES:
                found = True
                label = labels.name(str(field(task, "task_id", (str, int), place)))
                size = sizes.get(image_id)
                yield _sample(task, place=place, image_id=image_id, size=size, label=label, split=split)
        if not found:
            raise UserError(f"{self._store.url}/{_annotations(split)} has no phrases")

    def _sizes(self) -> dict[int, tuple[int, int]]:
        """Width and height that each image was annotated at."""
        return {
            field(image, "image_id", int, place): (
                field(image, "width", int, place),
                field(image, "height", int, place),
            )
            for _, place, image in json_elements(self._store, SIZES)
        }


def _annotations(split: str) -> str:
    return f"refer_{split}.json"


def _sample(
    task: dict[str, Any], *, place: str, image_id: int, size: tuple[int, int] | None, label: str, split: str
) -> Sample:
    instances = field(task, "Polygons", list, place)
    if not all(isinstance(instance, list) for instance in instances):
        raise UserError(f'{place}: "Polygons" must be a list of instances, each a list of polygons')
    try:
        mask = PolygonMask.from_polygons(
            (polygon for instance in instances for polygon in instance), annotated_size=size
        )
    except ValueError as error:
        raise UserError(f'{place}: "Polygons": {error}') from error
    return Sample(
        image_id=str(image_id),
        label_id=label,
        image=f"images/{image_id}.jpg",
        phrase=field(task, "phrase", str, place),
        mask=mask,
        split=split,
    )
