"""From configuration to a data set."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, Self

from pydantic import Field, model_validator

from ldznet.config import Config
from ldznet.errors import UserError
from pipeline.datasets.folder import FolderDataset
from pipeline.datasets.hidden_phrases import HiddenPhrases
from pipeline.datasets.phrasecut import PhraseCutDataset
from pipeline.datasets.refer import IMAGE_FOLDER, ReferDataset
from pipeline.datasets.sample import Dataset, Sample
from pipeline.datasets.shuffled_phrases import ShuffledPhrases
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore

# Controls: shuffled: each sample has another photo's phrase; hidden: all have one that tells nothing.
Phrases = Literal["own", "shuffled", "hidden"]


class ReferConfig(Config):
    """Which of the referring sets."""

    dataset: Literal["refcoco", "refcoco+", "refcocog"] = "refcoco"
    split_by: Literal["unc", "google", "umd"] = "unc"
    images: str = IMAGE_FOLDER  # folder of COCO's train2014 images, inside the root

    @model_validator(mode="after")
    def _published(self) -> Self:
        """RefCOCOg was never split by UNC, nor RefCOCO by UMD."""
        known = ("google", "umd") if self.dataset == "refcocog" else ("google", "unc")
        if self.split_by not in known:
            raise ValueError(f"{self.dataset} has no splits by {self.split_by}: use {' or '.join(known)}")
        return self


class DataConfig(Config):
    """Where a data set is and how it is laid out."""

    format: Literal["folder", "phrasecut", "refer"]
    root: str = Field(min_length=1)  # a folder, or a URL (file://, s3://)
    name: str | None = None  # for logs and reports; the format's name where none is given
    splits: dict[str, str] = Field(default_factory=dict)  # our name -> the data set's, e.g. {val: miniv}
    limit: int | None = Field(default=None, gt=0)  # only the first so many samples of each split
    phrases: Phrases = "own"
    refer: ReferConfig | None = None

    @model_validator(mode="after")
    def _refer_only(self) -> Self:
        if self.refer is not None and self.format != "refer":
            raise ValueError(f"refer: … is for format: refer, not for {self.format}")
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """A data set under the splits' names and the limit that the configuration gives."""

    whole: Dataset
    names: dict[str, str]
    limit: int | None

    @property
    def name(self) -> str:
        """The data set's name."""
        return self.whole.name

    @property
    def store(self) -> ObjectStore:
        """The data set's store."""
        return self.whole.store

    def splits(self) -> tuple[str, ...]:
        """The given names, or the data set's own."""
        return tuple(self.names) or self.whole.splits()

    def samples(self, split: str) -> Iterator[Sample]:
        """The split's first samples, under its given name.

        Raises:
            UserError: there is no such name, or no such split in the data set.
        """
        if self.names and split not in self.names:
            raise UserError(f"split {split!r} is not among data.splits: {', '.join(self.names)}")
        for sample in islice(self.whole.samples(self.names.get(split, split)), self.limit):
            yield replace(sample, split=split)


def open_dataset(config: DataConfig, *, store: ObjectStore | None = None) -> Dataset:
    """Open a data set, cheaply: that its files are there is looked at, none is read.

    Args:
        config: where and what.
        store: the root, where it is open already.

    Raises:
        UserError: the root is missing, empty, or in another layout.
    """
    root = store or open_store(config.root)
    whole: Dataset
    match config.format:
        case "folder":
            whole = FolderDataset(store=root, name=config.name or "folder")
        case "phrasecut":
            whole = PhraseCutDataset(store=root, name=config.name or "phrasecut")
        case "refer":
            options = config.refer or ReferConfig()
            whole = ReferDataset(
                store=root,
                dataset=options.dataset,
                split_by=options.split_by,
                images=options.images,
                name=config.name,
            )
    if config.splits or config.limit is not None:
        whole = Selection(whole=whole, names=config.splits, limit=config.limit)
    match config.phrases:
        case "shuffled":
            return ShuffledPhrases(whole=whole)
        case "hidden":
            return HiddenPhrases(whole=whole)
        case "own":
            return whole
