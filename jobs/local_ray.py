"""Joins the running Ray cluster, or starts one on this machine for as long as the job lasts."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ldznet.errors import UserError

OBJECT_STORE_BYTES = 256 * 2**20  # shards go to object storage, never through Ray's memory

_ALL_INTERFACES = (
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # other than 0, Ray binds them, whatever address it is given
)

_SETTINGS = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a recipe's relative paths mean the same to driver and ranks
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's own 15 gives whatever else runs a machine's time before the networks
}


def settle_ray() -> None:
    """Set what Ray reads from the environment when it is imported: to be called before anything imports it."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault(_ALL_INTERFACES, "0")


def refuse_open_ray() -> None:
    """Refuse to start a Ray that strangers could run code on.

    Raises:
        UserError: the environment asks for one on all interfaces, without a token.
    """
    if os.environ.get("RAY_ADDRESS") or os.environ.get(_ALL_INTERFACES) == "0":
        return
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        raise UserError(
            f"{_ALL_INTERFACES}={os.environ[_ALL_INTERFACES]} lets Ray listen on all addresses, and "
            f"RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']} lets everybody in: unset one of them"
        )


@contextmanager
def ray_session(*, cpus: float | None = None) -> Iterator[None]:
    """Join the cluster that `RAY_ADDRESS` names (a submitted job has it set), else start a local one.

    A local one is bound to loopback, has no dashboard, and is gone at the end. At least `cpus` CPU slots are
    offered, so that a small machine runs a recipe made for two workers.

    Raises:
        UserError: see `refuse_open_ray`.
    """
    settle_ray()
    refuse_open_ray()
    import ray

    if ray.is_initialized():
        yield
        return
    # It warns whenever tokens are on, which is how we want them.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    quiet = {"log_to_driver": True, "logging_level": logging.WARNING}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        slots = max(os.cpu_count() or 1, int(cpus or 1))
        # "local" and not the default: a head that was killed leaves a stale address behind, which would be joined.
        ray.init(
            address="local",
            num_cpus=slots,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            **quiet,
        )
    try:
        yield
    finally:
        ray.shutdown()
