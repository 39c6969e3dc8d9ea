# ruff: noqa: T201 - a benchmark prints
"""The mIoU that an LD-ZNet trained on fp32 features reaches when it reads each stored type.

A miniature LD-ZNet on generated scenes, from an untrained miniature LDM: what counts is the difference between types.
z is withheld from it (zeros), so that block features are all that it sees of the image: given z, so small a network
learns to do without features of an untrained LDM, and reads noise as well as any type. Fusion by concatenation, which
learns in fewer steps.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ldznet.frozen_ldm import FrozenLDM
from ldznet.loss import mask_loss
from ldznet.miniature_ldm import MiniatureConfig, build_miniature_ldm
from ldznet.modeling import SegmentationNetwork, build_network, initialise_from_ldm, unet_config_of
from ldznet.modeling.config import NetworkConfig
from ldznet.scores import SegmentationScores
from pipeline.cache.entry import Entry
from pipeline.datasets.opening import DataConfig, open_dataset
from pipeline.evaluation.scoring import network_predictor, run_network
from pipeline.loading.collate import collate
from pipeline.scenes.config import SceneCounts, ScenesConfig
from pipeline.scenes.writing import write_scenes
from pipeline.training.config import TrainConfig
from pipeline.training.schedule import learning_rate
from tests.benchmarks.photo_entries import data_views, entries_of
from tests.benchmarks.record import write_record
from tests.benchmarks.stored_forms import FORMS, StoredForm

SIZE = 128
BATCH = 16
EXACT = "fp32"
OTHERS = "another sample's features"
# A block has 4 x 4 positions here and 12 x 12 at 384 px: with 9 channels a scale as many values share one.
MORE_FORMS = (StoredForm(dtype="int8", scale_group=9), StoredForm(dtype="fp8", scale_group=9))
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What one network scored on the same samples, read in one form."""

    miou: float  # at the threshold that is best for fp32
    best: float  # at this form's own best threshold
    phrase_ious: "np.ndarray[tuple[int], np.dtype[np.float64]]"  # at fp32's threshold
    moved: float  # mean difference of a probability to fp32's


def measure_miou(*, folder: Path, quick: bool) -> None:
    """Make scenes and features, train, evaluate, and write the record."""
    scenes = ScenesConfig(
        size=SIZE, nouns=8, min_objects=2, max_objects=2, min_scale=0.4, max_scale=0.6, repeat=0, photos=0.2,
        more_phrases=0, phrase_kinds=("name",),
        counts=SceneCounts(train=24 if quick else 1000, val=0, test=8 if quick else 200, foreign=0),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        ldm, train, test = _make_entries(Path(temporary), scenes)
        network = _train(ldm.folder, train, steps=4 if quick else 700)
    forms = [
        form for form in (*FORMS, *MORE_FORMS) if not (form.dtype == "int8" and form.scale_group in {4, 16})
    ]
    readings = evaluate_forms(network, test, forms)
    exact = readings[EXACT]
    for label, reading in readings.items():
        off, error = _paired(reading, exact)
        print(
            f"{label:28} mIoU {100 * reading.miou:6.2f} (best {100 * reading.best:6.2f}), a phrase's IoU "
            f"{100 * off:+.3f} +- {100 * error:.3f} points, a probability moves {reading.moved:.2e}"
        )
    _write(readings, phrases=len(test), folder=folder)


def _make_entries(folder: Path, scenes: ScenesConfig) -> tuple[FrozenLDM, list[Entry], list[Entry]]:
    write_scenes(folder / "scenes", scenes)
    dataset = open_dataset(DataConfig(format="folder", root=str(folder / "scenes")))
    views = {split: list(data_views(dataset, split, size=SIZE)) for split in ("train", "test")}
    built = build_miniature_ldm(
        folder / "ldm",
        config=MiniatureConfig(block_out_channels=(16, 32, 64, 64)),
        phrases=sorted({view.phrase for view in views["train"]}),
    )
    ldm = FrozenLDM.from_pretrained(built)
    steps = np.random.default_rng(0).integers(300, 500, len(views["train"])).tolist()
    train = entries_of(ldm, views["train"], timesteps=steps, batch=BATCH)
    test = entries_of(ldm, views["test"], timesteps=[400] * len(views["test"]), batch=BATCH, seed=1)
    return ldm, [_without_latents(entry) for entry in train], [_without_latents(entry) for entry in test]


def _without_latents(entry: Entry) -> Entry:
    return replace(entry, latents=torch.zeros_like(entry.latents))


def _train(ldm: Path, entries: Sequence[Entry], *, steps: int) -> SegmentationNetwork:
    """A short training on fp32 features."""
    assert not any(bool(entry.latents.any()) for entry in entries), "z is withheld"
    torch.manual_seed(0)
    torch.set_num_threads(1)
    unet = unet_config_of(ldm)
    network = build_network(
        NetworkConfig(kind="ldznet", fusion="concat", unet=unet, positional_latent_side=SIZE // 8)
    )
    initialise_from_ldm(network, ldm)
    config = TrainConfig(
        steps=steps, batch_size=BATCH, lr=1e-3, warmup_steps=min(20, steps - 1), schedule="cosine"
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=config.weight_decay)
    order, started, losses = np.random.default_rng(0), time.perf_counter(), []
    network.train()
    for step in range(steps):
        rows = order.choice(len(entries), BATCH, replace=False)
        batch = collate([entries[row] for row in rows], size=BATCH, samples=BATCH).to(CPU, torch.float32)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(config, step=step, total=steps)
        loss = mask_loss(run_network(network, batch), batch.masks)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 100 == 0:
            spent = time.perf_counter() - started
            print(f"step {step + 1}: loss {np.mean(losses[-100:]):.4f}, {spent:.0f} s", flush=True)
    return network


def evaluate_forms(
    network: SegmentationNetwork, entries: Sequence[Entry], forms: Sequence[StoredForm]
) -> dict[str, Reading]:
    """The same weights on the same samples, read in each form; and as a control with features of other samples.

    z and context are fp32 in all: block features alone are compared.
    """
    turned = [replace(entry, features=other.features) for entry, other in _with_others(entries)]
    read = {form.label: [_with_features(entry, form.stored(entry)) for entry in entries] for form in forms}
    read[OTHERS] = turned
    exact = _probabilities(network, read[EXACT])
    truth = torch.stack([torch.from_numpy(entry.mask) for entry in entries]).unsqueeze(1)
    images = [str(entry.facts["image_id"]) for entry in entries]
    threshold: float | None = None
    readings: dict[str, Reading] = {}
    for label, those in read.items():
        probabilities = _probabilities(network, those)
        scores = SegmentationScores()
        scores.update_probabilities(probabilities, truth, image_ids=images)
        best = scores.compute(resamples=0).miou.best
        threshold = best.threshold if threshold is None else threshold
        assert threshold is not None
        at_threshold = scores.compute(resamples=0, fixed_threshold=threshold).miou.at_fixed
        readings[label] = Reading(
            miou=at_threshold.value,
            best=best.value,
            phrase_ious=scores.phrase_ious(threshold),
            moved=float((probabilities - exact).abs().mean()),
        )
    return readings


def _with_others(entries: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    half = len(entries) // 2
    return list(zip(entries, [*entries[half:], *entries[:half]], strict=True))


def _with_features(entry: Entry, stored: Entry) -> Entry:
    return replace(entry, features=stored.features, scales=stored.scales)


def _probabilities(network: SegmentationNetwork, entries: Sequence[Entry]) -> torch.Tensor:
    predict = network_predictor(network, device=CPU)
    batches = [
        collate(part, size=len(part), samples=len(part))
        for part in (entries[start : start + BATCH] for start in range(0, len(entries), BATCH))
    ]
    return torch.cat([predict(batch).sigmoid() for batch in batches])


def _paired(reading: Reading, exact: Reading) -> tuple[float, float]:
    """Mean difference of a phrase's IoU to fp32's, and half its 95 % interval."""
    off = reading.phrase_ious - exact.phrase_ious
    return float(off.mean()), float(1.96 * off.std() / len(off) ** 0.5)


def _write(readings: dict[str, Reading], *, phrases: int, folder: Path) -> None:
    exact, int8 = readings[EXACT], readings["int8 / 1"]
    write_record(
        name="stored_types_miou",
        value=100 * (int8.miou - exact.miou),
        unit="points of mIoU, int8 against fp32",
        better="higher",
        target=None,
        sides={label: [100 * reading.miou] for label, reading in readings.items()},
        sides_unit="% mIoU",
        command="python -m tests.benchmarks.stored_types",
        about=(
            f"One miniature LD-ZNet (concat), trained for a short time on fp32 features of scenes ({SIZE} px, "
            f"untrained LDM), reads {phrases} other phrases' features in each stored type; mIoU at the threshold that "
            "is best for fp32. z is withheld from it, so that features are all that it sees of the image; the control "
            "tells how far it relies on them. Behind the stroke: channels that share a scale; blocks have 4 x 4 "
            "positions here, so that with 9 channels a scale as many values share one as at 384 px."
        ),
        details={
            "difference of a phrase's IoU to fp32, points, with the half of its 95 % interval": {
                label: "{:+.4f} +- {:.4f}".format(*(100 * one for one in _paired(reading, exact)))
                for label, reading in readings.items()
            },
            "mean difference of a pixel's probability to fp32": {
                label: f"{reading.moved:.1e}" for label, reading in readings.items()
            },
            "mIoU at each one's own best threshold, %": {
                label: f"{100 * reading.best:.2f}" for label, reading in readings.items()
            },
        },
        threads=1,
        folder=folder,
    )  # fmt: skip
