"""The last step of a metric's way: into its run in MLflow, no step twice."""

from typing import TYPE_CHECKING

from pipeline.tracking.spool import MetricPoint

if TYPE_CHECKING:
    from mlflow import MlflowClient

_POINTS_A_REQUEST = 1000  # MLflow's own limit


class MetricDelivery:
    """Sends points to one run.

    Args:
        once: Of each metric, steps up to the last one that the run has are left out, and so are those that were among
            the points before: after a restart a training repeats the steps since its checkpoint.
    """

    def __init__(self, *, once: bool) -> None:
        self._last_steps: dict[str, int] | None = {} if once else None

    def send(self, client: "MlflowClient", run_id: str, points: list[MetricPoint]) -> int:
        """Send points in the order given. Returns how many were new."""
        from mlflow.entities import Metric

        fresh, last_steps = self._new_ones(client, run_id, points)
        for start in range(0, len(fresh), _POINTS_A_REQUEST):
            part = fresh[start : start + _POINTS_A_REQUEST]
            client.log_batch(
                run_id,
                metrics=[Metric(point.key, point.value, point.timestamp, point.step) for point in part],
            )
        self._last_steps = last_steps
        return len(fresh)

    def _new_ones(
        self, client: "MlflowClient", run_id: str, points: list[MetricPoint]
    ) -> tuple[list[MetricPoint], dict[str, int] | None]:
        """Points without the repeated ones, and each metric's last step."""
        if self._last_steps is None:
            return points, None
        fresh, last = [], dict(self._last_steps)
        for point in points:
            if point.key not in last:
                history = client.get_metric_history(run_id, point.key)
                last[point.key] = max((metric.step for metric in history), default=-1)
            if point.step > last[point.key]:
                last[point.key] = point.step
                fresh.append(point)
        return fresh, last
