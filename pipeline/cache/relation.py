"""What one numeric specification can take over from another's shards."""

from dataclasses import dataclass
from typing import Any, Final

from pipeline.cache.spec import CacheSpec

_LOSSLESS: Final = "fp32"  # holds every compute dtype exactly, and latents, which are always computed in fp32
_MAY_DIFFER: Final[dict[str, Any]] = {
    "content": True,
    "features": {"blocks", "stored_dtype", "scale_group", "stored_from"},
    "policy": {"draws"},  # a draw is the same however many there are
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """How shards of another specification serve: as they are, joined by columns, or converted first."""

    convert: bool  # to the wanted stored type, from the shards' own
    shared_blocks: tuple[int, ...]
    missing_blocks: tuple[int, ...]

    @property
    def rank(self) -> tuple[bool, int]:
        """The least work first."""
        return self.convert, len(self.missing_blocks)


def relate(wanted: CacheSpec, have: CacheSpec) -> Relation | None:
    """How `wanted` can use shards of `have`, or None where it cannot.

    A conversion gives the very bytes of a direct computation when the source holds what was computed exactly; one
    that rounds twice is another specification, which names its source (`features.stored_from`).
    """
    if (wanted.content, have.content) != ("samples", "samples") or in_common(wanted) != in_common(have):
        return None
    ours, theirs = wanted.features, have.features
    stored = (theirs.stored_dtype, theirs.scale_group, theirs.stored_from)
    same = stored == (ours.stored_dtype, ours.scale_group, ours.stored_from)
    source = ours.stored_from or _LOSSLESS
    if not same and (theirs.stored_dtype != source or theirs.stored_from is not None):
        return None
    return Relation(
        convert=not same,
        shared_blocks=tuple(block for block in ours.blocks if block in theirs.blocks),
        missing_blocks=tuple(block for block in ours.blocks if block not in theirs.blocks),
    )


def in_common(spec: CacheSpec) -> dict[str, Any]:
    """What every specification has that shards may be taken over from; see `pipeline.cache.lease` for such families."""
    return spec.model_dump(mode="json", exclude=_MAY_DIFFER)


def with_blocks(spec: CacheSpec, blocks: tuple[int, ...]) -> CacheSpec:
    """The specification of samples with these blocks only."""
    return spec.model_copy(update={"features": spec.features.model_copy(update={"blocks": blocks})})


def column_spec(spec: CacheSpec, blocks: tuple[int, ...]) -> CacheSpec:
    """The specification of shards that hold these block features of samples that lie elsewhere."""
    return with_blocks(spec, blocks).model_copy(update={"content": "columns"})
