"""What was logged, read back: curves for a report."""

from ldznet.errors import UserError
from pipeline.pictures import Curve
from pipeline.tracking.client import open_client, tracking_failures
from pipeline.tracking.redaction import redacted_text


def logged_curve(uri: str, run_id: str, metric: str, *, name: str) -> Curve:
    """A metric of a run over its steps, under the name that a chart shows. Empty where it was never logged.

    Raises:
        UserError: No such run, or MLflow is away.
    """
    try:
        history = open_client(uri).get_metric_history(run_id, metric)
    except tracking_failures() as error:
        raise UserError(f"run {run_id} cannot be read at {redacted_text(uri)}: {error}") from error
    points = sorted((point.step, point.timestamp, point.value) for point in history)
    # A step that was logged twice counts once, with its last value.
    values = {step: value for step, _, value in points}
    return Curve(name=name, steps=list(values), values=list(values.values()))
