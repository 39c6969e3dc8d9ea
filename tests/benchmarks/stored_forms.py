"""The ways to store block features that are compared, and what features become on their way through each."""

from dataclasses import dataclass, replace

from torch import Tensor

from pipeline.cache.entry import Entry, decode_entry, encode_entry
from pipeline.cache.spec import QUANTISED, Dtype
from pipeline.cache.stored_type import dequantise

WHOLE_BLOCK = 2**16  # one scale for all channels of a block


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredForm:
    """A stored type with its scale group."""

    dtype: Dtype
    scale_group: int = 1

    @property
    def label(self) -> str:
        """Such as `fp16`, or `int8 / 4` where 4 channels share a scale."""
        if self.dtype not in QUANTISED:
            return self.dtype
        return f"{self.dtype} / {'block' if self.scale_group == WHOLE_BLOCK else self.scale_group}"

    def stored(self, entry: Entry) -> Entry:
        """The entry as the loader gives it: encoded and decoded by the cache's own code."""
        files = encode_entry(entry, stored_dtype=self.dtype, scale_group=self.scale_group)
        return decode_entry(entry.key, files)

    def features(self, entry: Entry) -> dict[int, Tensor]:
        """Block features as a network takes them, fp32."""
        there = self.stored(entry)
        return {
            block: dequantise(values, there.scales[block]) if block in there.scales else values.float()
            for block, values in there.features.items()
        }

    def sizes(self, entry: Entry) -> tuple[int, int]:
        """Bytes of the sample's files, and of its block features with their scales alone."""
        files = encode_entry(entry, stored_dtype=self.dtype, scale_group=self.scale_group)
        there = decode_entry(entry.key, files)
        tensors = (*there.features.values(), *there.scales.values())
        return sum(map(len, files.values())), sum(tensor.nbytes for tensor in tensors)


FORMS = (
    StoredForm(dtype="fp32"),
    StoredForm(dtype="bf16"),
    StoredForm(dtype="fp16"),
    StoredForm(dtype="int8"),
    StoredForm(dtype="int8", scale_group=4),
    StoredForm(dtype="int8", scale_group=16),
    StoredForm(dtype="int8", scale_group=WHOLE_BLOCK),
    StoredForm(dtype="fp8"),
    StoredForm(dtype="fp8", scale_group=16),
    StoredForm(dtype="fp8", scale_group=WHOLE_BLOCK),
)


def with_outliers(entry: Entry, *, every: int = 100, times: float = 30) -> Entry:
    """One channel in `every` made `times` as large, as in trained vision networks: here weights are random."""
    features = {block: tensor.clone() for block, tensor in entry.features.items()}
    for tensor in features.values():
        tensor[every // 2 :: every] *= times
    return replace(entry, features=features)


def without_outliers(features: dict[int, Tensor], *, every: int = 100) -> dict[int, Tensor]:
    """The other channels: those that pay for the outliers."""
    kept = {}
    for block, tensor in features.items():
        ordinary = [channel for channel in range(len(tensor)) if channel % every != every // 2]
        kept[block] = tensor[ordinary]
    return kept
