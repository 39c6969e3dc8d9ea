"""Probes: a mask that is in the features is found, one that is not is not, and equal arguments give equal weights."""

import torch

from ldznet.probe import ProbeTraining, probe_logits, train_probe
from ldznet.scores import SegmentationScores

TRAINING = ProbeTraining(steps=120, batch_size=16, lr=5e-3, hidden=16)


def made(samples: int, *, seed: int, told: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of noise, whose channel 3 tells where the mask is, or does not."""
    generator = torch.Generator().manual_seed(seed)
    coarse = (torch.rand((samples, 1, 4, 4), generator=generator) > 0.6).float()
    features = torch.randn((samples, 8, 4, 4), generator=generator)
    if told:
        features[:, 3:4] += 8 * coarse
    masks = torch.nn.functional.interpolate(coarse, size=(16, 16), mode="nearest")
    return features.half(), masks


def miou(*, told: bool) -> float:
    decoder = train_probe(*made(96, seed=0, told=told), TRAINING)
    features, masks = made(64, seed=1, told=told)
    scores = SegmentationScores()
    scores.update(torch.cat(list(probe_logits(decoder, features, batch_size=24))), masks)
    return scores.compute(resamples=0).miou.best.value


def test_what_is_in_the_features_is_found() -> None:
    told, untold = miou(told=True), miou(told=False)
    assert told > 0.8
    assert untold < 0.5  # the masks' share is 0.4


def test_equal_arguments_give_equal_weights_and_leave_torchs_generator_alone() -> None:
    samples = made(32, seed=2, told=True)
    torch.manual_seed(7)
    first = train_probe(*samples, TRAINING)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(1))
    second = train_probe(*samples, TRAINING)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_fewer_samples_than_a_batch() -> None:
    decoder = train_probe(*made(5, seed=3, told=True), TRAINING)
    assert next(probe_logits(decoder, made(2, seed=4, told=True)[0])).shape == (2, 1, 16, 16)
