"""What `ldznet cache` tells, as text for people."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.cache.comparison import Comparison
    from pipeline.cache.garbage import Findings
    from pipeline.cache.inventory import CacheSummary, ManifestDetails, SpecDetails, SpecSummary
    from pipeline.cache.verification import Verification

_REASONS_SHOWN = 8
_HEADER = ("KEY", "SETS", "SAMPLES", "SHARDS", "SIZE", "STORED", "BLOCKS", "VIEW", "AGE", "")
_RIGHT = {2, 3, 4, 8}  # columns of numbers


def size_text(size: float) -> str:
    """Bytes in a unit that fits: `0.5 TB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB" if size < 1000 else f"{size:,.0f} TB"


def age_text(modified: float) -> str:
    """How long ago, in the largest unit that fits: `3 d`."""
    age = max(0.0, time.time() - modified)
    for unit, seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if age >= seconds:
            return f"{age / seconds:.0f} {unit}"
    return f"{age:.0f} s"


def ranges_text(numbers: Sequence[int]) -> str:
    """`1,2,3,5` as `1-3,5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) or "none"


def list_lines(summary: "CacheSummary", short: Mapping[str, str]) -> Iterator[str]:
    """A line a specification, and the total."""
    rows = [_HEADER, *(_row(one, short) for one in summary.specs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    for row in rows:
        cells = (
            cell.rjust(width) if column in _RIGHT else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
    yield f"{size_text(summary.size)} in all in {summary.url}; a shard that several name counts once"


def _row(one: "SpecSummary", short: Mapping[str, str]) -> tuple[str, ...]:
    notes = []
    if one.lent:
        notes.append(f"{one.lent} shards that others name")
    if one.unnamed:
        notes.append(f"{one.unnamed} committed shards that no manifest names")
    stored, blocks, view = "?", "?", "?"
    if one.spec is not None:
        features, policy = one.spec.features, one.spec.policy
        group = f"/{features.scale_group}" if features.scale_group > 1 else ""
        source = f" from {features.stored_from}" if features.stored_from else ""
        stored = f"{features.stored_dtype}{group}{source}"
        blocks, view = ranges_text(features.blocks), f"{policy.view.policy} {policy.view.size}"
    else:
        notes.append("its specification cannot be read")
    is_column = one.spec is not None and one.spec.content == "columns"
    return (
        short[one.cache_key],
        ", ".join(one.sets) or ("columns" if is_column else "no manifest yet"),
        f"{one.samples:,}",
        f"{one.shards:,}",
        size_text(one.size),
        stored,
        blocks,
        view,
        age_text(one.modified),
        "; ".join(notes),
    )


def details_lines(details: "SpecDetails") -> Iterator[str]:
    """A specification, field by field, and its manifests."""
    yield f"specification {details.cache_key}"
    if details.spec is None:
        yield "  its text is gone, damaged or of another version"
    else:
        for field, value in _fields(details.spec.model_dump(mode="json")):
            yield f"  {field}: {_value(value)}"
    if not details.manifests:
        yield "no manifest yet: `ldznet precompute` with its recipe goes on"
    for manifest in details.manifests:
        yield ""
        yield from _manifest_lines(manifest)


def _manifest_lines(manifest: "ManifestDetails") -> Iterator[str]:
    yield f"manifest {manifest.manifest_id}: {manifest.dataset}/{manifest.split}, {age_text(manifest.modified)} old"
    yield f"  {manifest.samples:,} samples, {size_text(manifest.size)}"
    for origin in manifest.origins:
        whose = {"own": "its own", "column": "columns of further blocks"}.get(origin.where, "shards")
        where = "" if origin.where == "own" else f" under {origin.cache_key[:12]}"
        yield f"  from {whose}{where}: {origin.shards:,} shards, {size_text(origin.size)}"
    yield f"  left out: {manifest.failed:,} failed, {manifest.filtered:,} filtered"
    for reason in manifest.left_out[:_REASONS_SHOWN]:
        yield f"    {reason.members:,} {reason.why}: {reason.reason}"
    if len(manifest.left_out) > _REASONS_SHOWN:
        yield f"    and {len(manifest.left_out) - _REASONS_SHOWN:,} more reasons (--json tells all)"
    for environment in manifest.environments:
        versions = ", ".join(f"{name} {version}" for name, version in sorted(environment.versions.items()))
        machine = f"{environment.device} {environment.processor}".strip()
        yield f"  computed on {machine}" + (f" with {versions}" if versions else "")
    if manifest.requests:
        runs = f", MLflow {', '.join(manifest.run_ids)}" if manifest.run_ids else ""
        yield f"  answers {manifest.requests} requests{runs}"
    else:
        yield "  no request leads to it"


def comparison_lines(comparison: "Comparison") -> Iterator[str]:
    """What differs between two specifications."""
    yield f"{comparison.first[:12]} and {comparison.second[:12]}"
    if comparison.fields is None:
        yield "  the text of one of them is gone, damaged or of another version"
    for difference in comparison.fields or ():
        yield f"  {difference.field}: {_value(difference.first)} | {_value(difference.second)}"
    if comparison.fields == ():
        yield "  are the same specification"
    yield (
        f"  shared: {comparison.shared_shards:,} shards, {size_text(comparison.shared_size)}; "
        f"only the first: {size_text(comparison.first_size)}; only the second: {size_text(comparison.second_size)}"
    )


def _fields(content: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def verification_lines(found: "Verification", url: str) -> Iterator[str]:
    """Every fault, then what was looked at, then the mend."""
    for fault in found.faults:
        yield f"{fault.what}: {fault.object_key} ({' '.join(fault.detail.split())})"
    looked = f"{found.shards:,} of {found.shards_in_all:,} shards ({size_text(found.read)})"
    looked += f" and {found.manifests:,} manifests"
    if not found.faults:
        yield f"{looked} of {url} are as they were written"
        return
    bad = len({fault.object_key for fault in found.faults})
    yield f"{bad:,} objects are bad, of {looked} of {url}"
    yield "mend them with `ldznet precompute RECIPE --repair`, RECIPE being the one that they were made with"


def findings_lines(found: "Findings", url: str) -> Iterator[str]:
    """What `collect` would remove, and what it leaves though no manifest names it."""
    groups = Counter((one.kind, one.why) for one in found.garbage)
    sizes: Counter[tuple[str, str]] = Counter()
    for one in found.garbage:
        sizes[one.kind, one.why] += one.info.size
    for (kind, why), count in groups.items():
        yield f"{count:,} x {kind} ({why}): {size_text(sizes[kind, why])}"
    if found.lent:
        keys = sorted({key[:12] for namers in found.lent.values() for key in namers})
        yield f"{len(found.lent):,} shards of what is dropped stay: other manifests name them ({', '.join(keys)})"
    if found.young:
        young = size_text(sum(info.size for info in found.young))
        yield f"{len(found.young):,} objects ({young}) stay for being young: --older-than says how young"
    for cache_key, holder in sorted(found.leased.items()):
        yield f"{cache_key[:12]} stays as it is: a job is at work on it ({holder})"
    if found.foreign:
        yield f"{found.foreign:,} objects that are no part of a cache stay"
    if found.garbage:
        yield f"{len(found.garbage):,} objects, {size_text(found.size)} in {url} may go"
    else:
        yield f"there is nothing to collect in {url}; unfinished uploads, older than a day, go with --yes"
