"""The learning rate as a function of the step alone, so that a resumed run needs no state for it."""

import math

from pipeline.training.config import TrainConfig


def learning_rate(config: TrainConfig, *, step: int, total: int) -> float:
    """The rate of step `step` (0 is the first of `total`): linear warm-up, then the schedule down to 0."""
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.peak_lr
    done = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    done = min(1.0, done)
    share = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.peak_lr * share
