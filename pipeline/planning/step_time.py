"""How long a rank of the recipe's training takes for a sample here: forward, backward and the optimiser's step."""

import time
from collections.abc import Callable
from statistics import median
from typing import Final

import torch

from ldznet.ldm_folder import resolve_ldm
from ldznet.loss import mask_loss
from ldznet.modeling import build_network, unet_config_of
from ldznet.modeling.config import NetworkConfig
from pipeline.evaluation.scoring import run_network
from pipeline.loading.batch import Batch
from pipeline.recipe import Recipe
from pipeline.training import ranks
from pipeline.training.engine import adamw, forward_pass

_LEAST, _MOST = 3, 10  # timed steps
_PIXELS_PER_LATENT: Final = 8
_BYTES_A_PARAMETER: Final = 16  # weight, gradient and two moments, fp32


def training_bytes(recipe: Recipe) -> int:
    """Memory of the recipe's network in training, activations not counted."""
    with torch.device("meta"):
        network = build_network(_config(recipe))
    return sum(parameter.numel() for parameter in network.parameters()) * _BYTES_A_PARAMETER


def time_training(recipe: Recipe, batch: Batch, *, seconds: float) -> float:
    """Seconds a sample on one rank, without communication: medians, the first step not counted.

    Args:
        recipe: the resolved recipe. Weights are random: they do not change the time.
        batch: one micro batch of the training set.
        seconds: about; at least three steps are timed.
    """
    config, threads = recipe.train, torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        module = forward_pass(build_network(_config(recipe)), run_network, config).train()
        optimiser = adamw([each for each in module.parameters() if each.requires_grad], config)
        device = ranks.rank_device()

        def micro_batch() -> None:
            moved = batch.to(device, torch.float32)
            mask_loss(module(moved), moved.masks, moved.weight).backward()

        micro_batch()
        optimiser.step()
        passes, steps = list[float](), list[float]()
        until = time.perf_counter() + seconds
        while len(passes) < _LEAST or (time.perf_counter() < until and len(passes) < _MOST):
            optimiser.zero_grad()
            passes.append(_seconds(micro_batch))
            steps.append(_seconds(optimiser.step))
        return median(passes) / len(batch.keys) + median(steps) / config.rank_batch
    finally:
        torch.set_num_threads(threads)


def _config(recipe: Recipe) -> NetworkConfig:
    side = recipe.set_named(recipe.train_on).view.size // _PIXELS_PER_LATENT
    return recipe.network.config(unet_config_of(resolve_ldm(recipe.ldm.source)), latent_side=side)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
