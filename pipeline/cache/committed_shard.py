"""A committed shard as a manifest takes it up: where it lies, what it holds, and its columns of further blocks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.cache import layout
from pipeline.cache.index import Index, rows_of
from pipeline.cache.receipt import Environment, LeftOut, OfOneDraw, Receipt


class ShardReference(OfOneDraw):
    """A shard as a manifest lists it. All its samples are of one draw."""

    shard_id: str
    object_key: str
    sha256: str
    size: int  # bytes
    samples: int
    environment: int = 0  # position in the manifest's list
    columns: tuple["ShardReference", ...] = ()  # further blocks of the same samples, in the same order

    @property
    def cache_key(self) -> str:
        """The specification under which it was computed."""
        return layout.cache_key_of(self.object_key)


@dataclass(frozen=True, kw_only=True, slots=True)
class CommittedShard:
    """A shard, its columns, and where each of its samples lies in them."""

    reference: ShardReference
    rows: Index
    column_rows: tuple[Index, ...]
    left_out: tuple[LeftOut, ...]
    environment: Environment
    column_environments: tuple[Environment, ...] = ()

    @property
    def environments(self) -> tuple[Environment, ...]:
        """Of the shard and of each column."""
        return (self.environment, *self.column_environments)

    @classmethod
    def from_receipts(cls, receipt: Receipt, columns: Sequence[Receipt] = ()) -> "CommittedShard":
        """From what was committed: the samples, and columns of further blocks."""
        shard = cls(
            reference=_reference(receipt),
            rows=rows_of(receipt.samples),
            column_rows=(),
            left_out=receipt.left_out,
            environment=receipt.environment,
        )
        for column in columns:
            shard = shard.with_column(cls.from_receipts(column))
        return shard

    def with_column(self, column: "CommittedShard") -> "CommittedShard":
        """With further blocks of the same samples.

        Raises:
            OSError: the column does not hold the samples of its shard.
        """
        if column.rows["key"].tolist() != self.rows["key"].tolist():
            raise OSError(
                f"{column.reference.object_key} does not hold the samples of {self.reference.object_key}, "
                "whose blocks it adds: remove its receipt and run again"
            )
        columns = (*self.reference.columns, column.reference)
        return replace(
            self,
            reference=self.reference.model_copy(update={"columns": columns}),
            column_rows=(*self.column_rows, column.rows),
            column_environments=(*self.column_environments, column.environment),
        )


def _reference(receipt: Receipt) -> ShardReference:
    return ShardReference(
        shard_id=receipt.shard_id,
        object_key=receipt.object_key,
        sha256=receipt.sha256,
        size=receipt.size,
        samples=len(receipt.samples),
        draw=receipt.draw,
    )
