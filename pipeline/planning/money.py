"""What a plan costs at the user's prices. Where a price is missing, nothing is claimed."""

from dataclasses import dataclass

from pipeline.planning.config import PriceConfig

_GB = 1e9  # bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Money:
    """Costs in the user's currency; None where a price is missing."""

    currency: str
    precompute: float | None  # hours of workers
    precompute_requests: float | None
    storage_month: float | None  # all that the recipe's sets have in the cache
    months: float
    storage: float | None
    epoch_requests: float | None
    epoch_egress: float | None
    epoch_cached: float | None  # hours of reading beyond the training step, requests and egress
    epoch_online: float | None  # hours of computing features beyond the training step
    epochs: float | None  # after which caching has paid, storage counted; None: never, or a price is missing


@dataclass(frozen=True, kw_only=True, slots=True)
class Spending:
    """What is to be paid for."""

    on_gpu: bool
    precompute_s: float | None  # of all workers together
    puts: int
    gets: int
    stored_bytes: float
    epoch_gets: int
    epoch_bytes: float
    epoch_cached_s: float | None  # of all ranks together, beyond the training step
    epoch_online_s: float | None


def money(prices: PriceConfig, spending: Spending, *, months: float) -> Money:
    """Costs at the user's prices.

    Hours are paid at the price of what measured them: a CPU's hours say nothing of a GPU's cost.
    """
    hour = prices.gpu_hour if spending.on_gpu else prices.cpu_hour
    month = _times(prices.storage_gb_month, spending.stored_bytes / _GB)
    storage = _times(month, months)
    precompute = _hours(hour, spending.precompute_s)
    requests = _sum(
        _times(prices.put_1000, spending.puts / 1000), _times(prices.get_1000, spending.gets / 1000)
    )
    epoch_requests = _times(prices.get_1000, spending.epoch_gets / 1000)
    epoch_egress = _times(prices.egress_gb, spending.epoch_bytes / _GB)
    epoch_cached = _sum(_hours(hour, spending.epoch_cached_s), epoch_requests or 0.0, epoch_egress or 0.0)
    epoch_online = _hours(hour, spending.epoch_online_s)
    return Money(
        currency=prices.currency,
        precompute=precompute,
        precompute_requests=requests,
        storage_month=month,
        months=months,
        storage=storage,
        epoch_requests=epoch_requests,
        epoch_egress=epoch_egress,
        epoch_cached=epoch_cached,
        epoch_online=epoch_online,
        epochs=_pays_after(
            once=_sum(precompute, storage, requests or 0.0), cached=epoch_cached, online=epoch_online
        ),
    )


def _pays_after(*, once: float | None, cached: float | None, online: float | None) -> float | None:
    if once is None or cached is None or online is None or online <= cached:
        return None
    return once / (online - cached)


def _hours(price: float | None, seconds: float | None) -> float | None:
    return None if seconds is None else _times(price, seconds / 3600)


def _times(price: float | None, amount: float) -> float | None:
    return None if price is None else price * amount


def _sum(*parts: float | None) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None
