"""A training whose numbers no longer make sense: which samples did it, and what state is left from before."""

from typing import Any

from ldznet.errors import FinalError

_MOST_KEYS = 8  # in the message; the error holds all


class DivergenceError(FinalError, ArithmeticError):
    """Loss or gradients are not finite, or the loss is above the limit. No restart mends it.

    Attributes:
        step: The step that was stopped, counted from 1.
        keys: The samples whose own loss is wrong; where none is, all of the global batch.
        weights_changed: Whether the optimiser took the step before it was found.
        checkpoint: The checkpoint from before, once the loop knows.
    """

    def __init__(self, what: str, *, step: int, keys: tuple[str, ...], weights_changed: bool = False) -> None:
        super().__init__(what)
        self.what = what
        self.step = step
        self.keys = keys
        self.weights_changed = weights_changed
        self.checkpoint: str | None = None

    def __str__(self) -> str:
        samples = ", ".join(self.keys[:_MOST_KEYS]) or "unknown"
        more = f" and {len(self.keys) - _MOST_KEYS} more" if len(self.keys) > _MOST_KEYS else ""
        left = f"; {self.checkpoint}" if self.checkpoint else ""
        return f"the {self.what}; samples: {samples}{more}{left}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild across processes."""
        return (_rebuilt, (type(self), self.what, dict(vars(self))))


class NonFiniteLossError(DivergenceError):
    """The loss became NaN or infinite. The weights are still those from before the step."""

    def __init__(self, *, step: int, keys: tuple[str, ...]) -> None:
        super().__init__(f"loss of step {step} is not finite", step=step, keys=keys)


class ExplodingLossError(DivergenceError):
    """The loss is above `train.stop_above_loss`. The weights are still those from before the step."""

    def __init__(self, *, step: int, keys: tuple[str, ...], loss: float, limit: float) -> None:
        what = f"loss of step {step} is {loss:g}, above train.stop_above_loss={limit:g}"
        super().__init__(what, step=step, keys=keys)


class NonFiniteGradientError(DivergenceError):
    """The loss is finite and its gradient is not."""

    def __init__(self, *, step: int, keys: tuple[str, ...], weights_changed: bool) -> None:
        what = f"gradient of step {step} is not finite"
        super().__init__(what, step=step, keys=keys, weights_changed=weights_changed)


class NonFinitePredictionError(DivergenceError):
    """The network gives no numbers in validation: the steps before it broke its weights."""

    def __init__(self, *, step: int, keys: tuple[str, ...]) -> None:
        what = f"prediction in the validation after step {step} is not finite"
        super().__init__(what, step=step, keys=keys, weights_changed=True)


def _rebuilt(kind: type[DivergenceError], what: str, attributes: dict[str, Any]) -> DivergenceError:
    error = kind.__new__(kind, what)
    vars(error).update(attributes)
    return error
