"""The folder layout: `images/`, `masks/*.png`, and `phrases.jsonl` that ties them to phrases."""

import hashlib
from collections.abc import Iterator

from ldznet.errors import UserError
from pipeline.datasets.masks import FileMask
from pipeline.datasets.records import LabelNames, field, json_lines, object_key, require_object
from pipeline.datasets.sample import Sample
from pipeline.object_store.store import ObjectStore

PHRASES = "phrases.jsonl"
LAYOUT = (
    f'the folder layout has images/, masks/ and {PHRASES} with lines {{"image", "mask", "phrase", "split"?}}'
)
WHOLE = "all"  # the split of a record that names none


class FolderDataset:
    """A data set in the folder layout.

    Each line of `phrases.jsonl` is an object with `image` and `mask` (paths inside the folder), `phrase`, and
    maybe `split`; a line without one is in the split `all`. Other keys are left alone. The image's path is
    its id; a label's id is its mask's path and a digest of the phrase, so that lines may be added and sorted.
    """

    def __init__(self, *, store: ObjectStore, name: str = "folder") -> None:
        """Look whether the folder is one.

        Raises:
            UserError: the folder is missing, empty, or has no `phrases.jsonl`.
        """
        require_object(store, PHRASES, layout=LAYOUT)
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
        """The splits that the lines name, sorted."""
        return tuple(sorted({sample.split for sample in self._all_samples()}))

    def samples(self, split: str) -> Iterator[Sample]:
        """The samples of one split in the file's order.

        Raises:
            UserError: a line is malformed, or no line is of this split.
        """
        others, found = set(), False
        for sample in self._all_samples():
            if sample.split == split:
                found = True
                yield sample
            else:
                others.add(sample.split)
        if not found:
            has = f"it has {', '.join(sorted(others))}" if others else "the file has no lines"
            raise UserError(f"{self._store.url}/{PHRASES} has no phrases in split {split!r}: {has}")

    def _all_samples(self) -> Iterator[Sample]:
        labels = LabelNames()
        for place, record in json_lines(self._store, PHRASES):
            image = object_key(field(record, "image", str, place), "image", place)
            mask = object_key(field(record, "mask", str, place), "mask", place)
            phrase = field(record, "phrase", str, place)
            split = field(record, "split", (str, type(None)), place) if "split" in record else None
            digest = hashlib.sha256(phrase.encode("utf-8", "surrogatepass")).hexdigest()[:12]
            yield Sample(
                image_id=image,
                label_id=labels.name(f"{mask}:{digest}"),
                image=image,
                phrase=phrase,
                mask=FileMask(key=mask),
                split=split or WHOLE,
            )
