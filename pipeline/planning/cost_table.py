"""A plan as text, for people: every figure with its unit, and what it was measured on."""

from collections.abc import Callable, Iterator, Sequence

from pipeline.planning.cost_plan import CostPlan, SetCost
from pipeline.planning.money import Money
from pipeline.planning.training_cost import Payback, TrainingCost

_LABEL = 34  # characters
_COLUMN = 13


def cost_table(plan: CostPlan) -> str:
    """The plan as text."""
    parts = [
        _head(plan),
        _counts(plan),
        _times(plan),
        _training(plan.training),
        _choice(plan),
        _costs(plan.money),
    ]
    return "\n\n".join("\n".join(lines) for lines in map(list, parts) if lines) + "\n"


def _head(plan: CostPlan) -> Iterator[str]:
    yield f"plan of {plan.recipe}, cache {plan.cache_url}"
    if plan.measured is None:
        yield "not calibrated: no hours; bytes of masks and pictures are guessed"
        return
    machine = plan.measured.machine
    threads = f", networks on {machine.threads} threads" if machine.threads > 1 else ", networks on 1 thread"
    yield (
        f"measured in {plan.measured.seconds:.0f} s on {'a GPU' if machine.device == 'cuda' else 'the CPU'}: "
        f"{machine.processor}; {machine.cores} cores{threads if machine.device == 'cpu' else ''}"
    )
    scaled = sorted({name for times in plan.measured.stages.values() for name in times.passes.scaled})
    if scaled:
        yield f"too slow to be timed in whole batches, extrapolated from batches of 1 and 2: {', '.join(scaled)}"


def _counts(plan: CostPlan) -> Iterator[str]:
    sets = plan.sets
    columns = [*(one.set_name for one in sets), *(["all"] if len(sets) > 1 else [])]
    yield _row("PRECOMPUTE", columns)

    def count(label: str, figure: Callable[[SetCost], int], *, always: bool = True) -> Iterator[str]:
        figures = [figure(one) for one in sets]
        if always or any(figures):
            yield _row(label, [f"{one:,}" for one in [*figures, *([sum(figures)] if len(sets) > 1 else [])]])

    def size(label: str, figure: Callable[[SetCost], int], *, always: bool = True) -> Iterator[str]:
        figures = [figure(one) for one in sets]
        if always or any(figures):
            yield _row(
                label, [bytes_text(one) for one in [*figures, *([sum(figures)] if len(sets) > 1 else [])]]
            )

    yield from count("members (samples x draws)", lambda one: one.members)
    yield from count("  in the cache: samples", lambda one: one.kept_samples, always=False)
    yield from count("  in the cache: shards", lambda one: one.kept_shards, always=False)
    yield from size("  in the cache: bytes", lambda one: one.kept_bytes, always=False)
    yield from count("  committed, in no manifest: shards", lambda one: one.committed_shards, always=False)
    yield from count("members to compute", lambda one: one.members_to_compute)
    yield from count("members to convert", lambda one: one.members_to_convert, always=False)
    yield from count("  of them samples, expected", lambda one: one.samples)
    yield from count("shards to write", lambda one: one.shards)
    yield _row("bytes a sample", [bytes_text(one.sample_bytes) for one in sets])
    yield from size("bytes to write", lambda one: one.bytes)
    yield from count("PUT requests", lambda one: one.puts)
    yield from count("GET requests", lambda one: one.gets)
    yield from count("photos to decode", lambda one: one.photos)
    yield from count(
        "views to encode" if plan.measured else "views to encode, at most", lambda one: one.views
    )
    yield from count("prompts to encode", lambda one: one.prompts)
    yield from count("passes of the VAE", lambda one: one.vae_passes)
    yield from count("passes of the text encoder", lambda one: one.text_passes)
    yield from count("passes of the UNet", lambda one: one.unet_passes)
    if not all(one.counted_exactly for one in sets):
        yield "photos, views, prompts, passes and GETs were counted in an even choice of shards"


def _times(plan: CostPlan) -> Iterator[str]:
    measured, sets = plan.measured, plan.sets
    if measured is None:
        return
    yield _row("SECONDS OF WORK, one thread each", [one.set_name for one in sets])
    stages = [("read, decode and view", "decode_s"), ("VAE", "vae_s"), ("text encoder", "text_s")]
    stages += [("UNet, up to the last block", "unet_s"), ("pack, hash, local disk", "pack_s")]
    stages += [("read to convert", "convert_s")] if any(one.members_to_convert for one in sets) else []
    for label, name in stages:
        yield _row(label, [_seconds(getattr(one.stages, name)) if one.stages else "-" for one in sets])
    yield ""
    unit = "GPU hours" if measured.machine.device == "cuda" else "CPU worker hours"
    yield _row("TIME, in steady state", ["time", unit, "bound by"], width=18)
    for one in plan.worker_times:
        label = f"{one.workers} worker{'s' if one.workers > 1 else ''}"
        yield _row(
            label, [duration(one.seconds), f"{_digits(one.worker_seconds / 3600)}", one.bound_by], width=18
        )
    loading = f"loading the frozen LDM ({measured.load_s:.1f} s a worker here)"
    yield f"left out: Ray's start, {loading}, waiting for a slow store"


def _training(training: TrainingCost | None) -> Iterator[str]:
    if training is None:
        return
    yield f"TRAINING on {training.set_name}, {training.ranks} rank{'s' if training.ranks > 1 else ''}"
    yield _row("samples an epoch", [f"{training.samples:,}"])
    yield _row("bytes an epoch", [bytes_text(training.bytes)])
    yield _row("ranged GETs an epoch", [f"{training.gets:,}"])
    if training.samples_per_second is None or training.bytes_per_second is None:
        yield "samples a second not known: give plan.samples_per_second for the bandwidth that a rank needs"
        return
    yield _row("samples a second and rank", [f"{_digits(training.samples_per_second)}"])
    yield _row("bandwidth a rank needs", [f"{bytes_text(training.bytes_per_second)}/s"])
    yield _row("bandwidth all ranks need", [f"{bytes_text(training.bytes_per_second * training.ranks)}/s"])


def _choice(plan: CostPlan) -> Iterator[str]:
    training = plan.training
    if training is None or not training.paybacks:
        return
    known = len(training.paybacks) > 1
    yield _row("CACHED OR ONLINE", ["step left out", *(["with the step"] if known else [])], width=16)

    def row(label: str, figure: Callable[[Payback], str]) -> str:
        return _row(label, [figure(one) for one in training.paybacks], width=16)

    yield row("training step, a sample", lambda one: _seconds(one.step_s))
    yield row("from the cache, a sample", lambda one: _seconds(one.cached_s))
    yield row("online, early stop, a sample", lambda one: _seconds(one.online_s))
    yield row("online, authors' order, a sample", lambda one: _seconds(one.authors_s))
    yield row("caching pays after, early stop", lambda one: _epochs(one.epochs))
    yield row("caching pays after, authors' order", lambda one: _epochs(one.epochs_authors))
    precompute_s, in_all = training.precompute_s or 0.0, training.samples * training.epochs
    label = f"{_digits(training.epochs)} epochs"
    yield row(f"{label}, precompute and cache", lambda one: duration(precompute_s + in_all * one.cached_s))
    yield row(f"{label}, online, early stop", lambda one: duration(in_all * one.online_s))
    yield row(f"{label}, authors' order", lambda one: duration(in_all * one.authors_s))
    yield "time of one device; reading is timed on a local folder unless plan.read_megabytes_per_second is slower"


def _costs(money: Money) -> Iterator[str]:
    figures = {
        "precompute, hours of workers": money.precompute,
        "precompute, requests": money.precompute_requests,
        f"storage for {money.months:g} month{'s' if money.months != 1 else ''}": money.storage,
        "requests an epoch of training": money.epoch_requests,
        "egress an epoch of training": money.epoch_egress,
        "an epoch's features, cached": money.epoch_cached,
        "an epoch's features, online": money.epoch_online,
    }
    if all(figure is None for figure in figures.values()):
        yield "COST: no price given (plan.prices.storage_gb_month, gpu_hour, cpu_hour, put_1000, get_1000, egress_gb)"
        return
    yield _row("COST", [money.currency])
    for label, figure in figures.items():
        if figure is not None:
            yield _row(label, [_amount(figure)])
    if money.epochs is not None:
        yield _row("caching pays after", [_epochs(money.epochs)])


def _row(label: str, cells: Sequence[str], *, width: int = _COLUMN) -> str:
    return f"{label:<{_LABEL}}" + "".join(f" {cell:>{width}}" for cell in cells)


def bytes_text(size: float) -> str:
    """Such as `1.52 MB`: powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{_digits(size)} {unit}"
        size /= 1000
    return f"{_digits(size)} TB"


def duration(seconds: float) -> str:
    """Such as `3.2 h`."""
    for unit, length in (("s", 1), ("min", 60), ("h", 3600)):
        if seconds < 100 * length:
            return _seconds(seconds) if unit == "s" else f"{_digits(seconds / length)} {unit}"
    return f"{_digits(seconds / 86400)} days"


def _seconds(seconds: float) -> str:
    return f"{_digits(seconds * 1000)} ms" if 0 < seconds < 0.1 else f"{_digits(seconds)} s"


def _epochs(epochs: float | None) -> str:
    if epochs is None:
        return "never"
    return "paid already" if epochs == 0 else f"{_digits(epochs)} epochs"


def _amount(figure: float) -> str:
    if 0 < figure < 0.0001:
        return "< 0.0001"
    return f"{figure:,.2f}" if figure >= 1 else f"{figure:.4f}"


def _digits(figure: float) -> str:
    """Three digits that count, no power of ten."""
    return f"{figure:.3g}" if figure < 999.5 else f"{figure:,.0f}"
