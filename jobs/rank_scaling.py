"""How many ranks Ray Train starts, and how long it waits for room: Ray's policies with the batch and a bound in mind.

Ray's own elastic policy takes any number of ranks, reckons with nodes that are gone until its next tick 20 s later,
and waits for ever. Private hooks: Ray is pinned.
"""

import time
from typing import Any, Final

from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
    NoopDecision,
)

from ldznet.errors import UserError
from pipeline.training.config import TrainConfig

_LOOK_AGAIN_S: Final = 0.5  # Ray asks without a pause
_ROUNDING: Final = 1e-6  # accelerators are reserved in thousandths
_ANSWER_S: Final = 30.0


class _Patience:
    """Ends the training where ranks have found no room for too long."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._waiting_since: float | None = None

    def running(self) -> None:
        self._waiting_since = None

    def waiting(self) -> None:
        """To be called before each attempt to start."""
        now = time.monotonic()
        if self._waiting_since is None:
            self._waiting_since = now
        minutes = self._config.cluster.wait_minutes
        if now - self._waiting_since > 60 * minutes:
            raise UserError(
                f"the Ray cluster found no room for {_least(self._config)} within {minutes:g} minutes: lower "
                "train.workers or train.threads, add nodes, or raise train.cluster.wait_minutes"
            )


def _least(config: TrainConfig) -> str:
    workers = config.workers
    count = f"{workers}" if isinstance(workers, int) else f"{workers.min} to {workers.max}"
    accelerator = config.cluster.accelerator
    return f"{count} ranks of {config.threads} CPU threads" + (f" on {accelerator}" if accelerator else "")


class FixedRanks(FixedScalingPolicy):
    """So many ranks or none."""

    def __init__(self, scaling_config: Any, config: TrainConfig) -> None:
        super().__init__(scaling_config)
        self._patience = _Patience(config)

    def make_decision_for_non_running_worker_group(self) -> Any:
        """Start all of them."""
        self._patience.waiting()
        return super().make_decision_for_non_running_worker_group()

    def make_decision_for_running_worker_group(self, *status: Any, **named: Any) -> Any:
        """Let them run."""
        self._patience.running()
        return super().make_decision_for_running_worker_group(*status, **named)


class ElasticRanks(ElasticScalingPolicy):
    """As many ranks as there is room for, among which the batch divides."""

    def __init__(self, scaling_config: Any, config: TrainConfig) -> None:
        super().__init__(scaling_config)
        self._config = config
        self._patience = _Patience(config)

    def make_decision_for_non_running_worker_group(self) -> Any:
        """Start what there is room for, or look again a little later."""
        self._patience.waiting()
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            time.sleep(_LOOK_AGAIN_S)
        return decision

    def make_decision_for_running_worker_group(self, *status: Any, **named: Any) -> Any:
        """Go over to another number of ranks where nodes have joined."""
        self._patience.running()
        return super().make_decision_for_running_worker_group(*status, **named)

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        wanted = self.scaling_config._resources_per_worker_not_none  # noqa: SLF001 - Ray's own policy reads it so
        needs = {name: need for name, need in wanted.items() if need}
        room = sum(
            int(min(has.get(name, 0.0) / need + _ROUNDING for name, need in needs.items()))
            for has in reserved_resources.values()
        )
        return self._config.fitting_ranks(room)

    def _get_reserved_resources(self) -> Any:
        """As the cluster is now."""
        import ray

        try:
            asked = self._autoscaling_coordinator.get_reserved_resources.remote(
                self._requester_id, recompute=True
            )
            return ray.get(asked, timeout=_ANSWER_S)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return None


def rank_scaling(scaling_config: Any, config: TrainConfig) -> FixedRanks | ElasticRanks:
    """The policy for a training."""
    kind = ElasticRanks if scaling_config.elasticity_enabled else FixedRanks
    return kind(scaling_config, config)
