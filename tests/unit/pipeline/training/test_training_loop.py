"""The loop on one rank under DDP: resuming, best model, early stop, NaN, EMA. No Ray, no DeepSpeed."""

import math
import os
import pickle
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from unit.pipeline.training.training_toy import ToyNetwork, ToySource, forward, loss, toy_batch

from ldznet.errors import UserError
from pipeline.loading.batch import Batch
from pipeline.loading.sample_order import Position
from pipeline.object_store.opening import open_store
from pipeline.training import ranks
from pipeline.training.checkpoint_store import CheckpointStore
from pipeline.training.config import TrainConfig
from pipeline.training.ddp_engine import DDPEngine
from pipeline.training.divergence import (
    ExplodingLossError,
    NonFiniteGradientError,
    NonFiniteLossError,
    NonFinitePredictionError,
)
from pipeline.training.ema import EMA, model_state
from pipeline.training.engine import Engine
from pipeline.training.loop import TrainOutcome, train
from pipeline.training.preemption import EXIT_CODE, Preempted


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with ranks.process_group():
        yield


class Recorder:
    """Keeps what an observer is told."""

    def __init__(self) -> None:
        self.starts: list[tuple[int, int]] = []
        self.steps: dict[int, dict[str, float]] = {}
        self.validations: list[tuple[int, bool]] = []
        self.checkpoints: list[int] = []

    def on_start(self, *, step: int, total: int) -> None:
        self.starts.append((step, total))

    def on_step(self, metrics: Mapping[str, float], *, step: int) -> None:
        self.steps[step] = dict(metrics)

    def on_validation(self, metrics: Mapping[str, float], *, step: int, best: bool) -> None:
        self.validations.append((step, best))

    def on_checkpoint(self, location: str, *, step: int, seconds: float) -> None:
        self.checkpoints.append(step)


def toy_config(**options: Any) -> TrainConfig:
    return TrainConfig(**{"engine": "ddp", "steps": 20, "batch_size": 4, "lr": 1e-2, **options})


def run(
    config: TrainConfig, source: Any = None, **options: Any
) -> tuple[TrainOutcome, dict[str, Tensor], Recorder]:
    ranks.seed_everything(config.seed)
    engine = DDPEngine(ToyNetwork(dropout=0.2), forward=forward, loss=loss, config=config)
    ema = EMA(engine) if config.ema else None
    recorder = Recorder()
    outcome = train(
        engine=engine,
        ema=ema,
        source=ToySource(batch_size=4, rank=0, ranks=1) if source is None else source,
        config=config,
        observer=recorder,
        **options,
    )
    return outcome, model_state(engine, ema), recorder


def kept_in(folder: Path, *, keep: int) -> CheckpointStore:
    return CheckpointStore(open_store(folder), keep=keep)


def visible(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder that are sealed; nothing else is there."""
    parts: dict[str, set[str]] = {}
    for path in folder.iterdir():
        name, _, part = path.name.partition(".")
        parts.setdefault(name, set()).add(part)
    assert all({"json", "rank-00000.receipt.json"} <= found for found in parts.values())
    return sorted(int(name.split("-")[1]) for name in parts)


def test_training_goes_on_while_a_checkpoint_is_uploaded(tmp_path: Path) -> None:
    trained_on = threading.Event()

    class Slow(CheckpointStore):
        def upload(self, folder: Path, name: str, *, rank: int) -> None:
            if name.startswith("step-00000004") and not trained_on.wait(60):
                raise OSError("no further batch was asked for meanwhile")
            super().upload(folder, name, rank=rank)

    class Told(ToySource):
        def epoch(self, position: Position) -> Iterator[Batch]:
            for number, batch in enumerate(super().epoch(position), position.batch):
                if number == 6:  # two steps after the checkpoint
                    trained_on.set()
                yield batch

    slow = Slow(open_store(tmp_path), keep=2)
    outcome, _, _ = run(
        toy_config(steps=8, checkpoint_every=4), Told(batch_size=4, rank=0, ranks=1), checkpoints=slow
    )
    assert outcome.steps == 8
    assert visible(tmp_path) == [4, 8]


class Breaks:
    """A source that fails before a batch, as a killed process does."""

    def __init__(self, source: ToySource, *, at: int) -> None:
        self.source, self.left = source, at

    def __len__(self) -> int:
        return len(self.source)

    def epoch(self, position: Position) -> Iterator[Batch]:
        for batch in self.source.epoch(position):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            yield batch


@pytest.mark.parametrize("at", [3, 8, 13, 16])
def test_a_resumed_run_ends_bitwise_as_an_undisturbed_one(tmp_path: Path, at: int) -> None:
    config = toy_config(checkpoint_every=4, warmup_steps=3, schedule="cosine")
    _, expected, whole = run(config)
    store = kept_in(tmp_path, keep=2)
    with pytest.raises(KeyboardInterrupt):
        run(config, Breaks(ToySource(batch_size=4, rank=0, ranks=1), at=at), checkpoints=store)
    for thread in threading.enumerate():
        if thread.name == "checkpoint":  # a killed process would take its upload with it
            thread.join()
    outcome, state, resumed = run(config, checkpoints=store)
    last = at // 4 * 4
    assert resumed.starts[0] in {
        (last, 20),
        (max(0, last - 4), 20),
    }  # the last may still have been on its way
    assert outcome.steps == 20
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert all(resumed.steps[step]["loss"] == whole.steps[step]["loss"] for step in resumed.steps)
    assert visible(tmp_path) == [16, 20]


def test_a_finished_run_does_nothing_when_called_again(tmp_path: Path) -> None:
    store = kept_in(tmp_path, keep=1)
    config = toy_config()
    kept: list[int] = []
    first, *_ = run(config, checkpoints=store, keep_model=lambda state, step, metrics: kept.append(step))
    again, _, recorder = run(config, checkpoints=store, validate=None)
    assert again == first
    assert recorder.steps == {}
    assert recorder.checkpoints == []
    assert kept == [20]


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    store = kept_in(tmp_path, keep=1)
    run(toy_config(), checkpoints=store)
    with pytest.raises(UserError, match="another configuration"):
        run(toy_config(lr=2e-2), checkpoints=store)
    with pytest.raises(UserError, match="another configuration"):
        run(toy_config(), checkpoints=store, identity="other data")


def test_the_best_model_is_kept_and_patience_ends_the_run(tmp_path: Path) -> None:
    scores = iter([0.1, 0.5, 0.3, 0.4, 0.9])
    kept: dict[int, dict[str, Tensor]] = {}
    outcome, _, recorder = run(
        toy_config(validate_every=2, patience=2),
        validate=lambda engine: {"miou": next(scores)},
        keep_model=lambda state, step, metrics: kept.setdefault(step, state),
        checkpoints=kept_in(tmp_path, keep=1),
    )
    assert recorder.validations == [(2, True), (4, True), (6, False), (8, False)]
    assert (outcome.steps, outcome.best, outcome.best_step, outcome.stopped_early) == (8, 0.5, 4, True)
    assert sorted(kept) == [2, 4]
    ToyNetwork().load_state_dict(kept[4])
    again, _, recorder = run(
        toy_config(validate_every=2, patience=2),
        validate=lambda engine: pytest.fail("it had stopped"),
        checkpoints=kept_in(tmp_path, keep=1),
    )
    assert again == outcome


def test_more_patience_lets_a_stopped_run_go_on(tmp_path: Path) -> None:
    first, _, _ = run(
        toy_config(validate_every=2, patience=2),
        validate=lambda engine: {"miou": -float(engine.step)},
        checkpoints=kept_in(tmp_path, keep=1),
    )
    assert (first.steps, first.stopped_early) == (6, True)
    longer, _, recorder = run(
        toy_config(validate_every=2, patience=3),
        validate=lambda engine: {"miou": -float(engine.step)},
        checkpoints=kept_in(tmp_path, keep=1),
    )
    assert recorder.validations == [(8, False)]
    assert (longer.steps, longer.stopped_early) == (8, True)


def test_a_validation_without_a_number_is_no_better_and_survives_a_checkpoint(tmp_path: Path) -> None:
    config = toy_config(validate_every=2)
    outcome, _, _ = run(
        config,
        validate=lambda engine: {"miou": math.nan if engine.step > 2 else 0.5},
        checkpoints=kept_in(tmp_path, keep=1),
    )
    again, _, _ = run(config, checkpoints=kept_in(tmp_path, keep=1), validate=lambda _: pytest.fail("done"))
    assert (again.best, again.best_step) == (outcome.best, outcome.best_step) == (0.5, 2)
    assert math.isnan(again.metrics["miou"])


def test_validation_sees_the_averaged_weights_and_training_goes_on_with_its_own() -> None:
    config = toy_config(steps=6, validate_every=2)
    batch = toy_batch(500, 4)
    seen: list[Tensor] = []

    def validate(engine: Engine) -> dict[str, float]:
        seen.append(engine.predict(batch))
        return {"miou": 0.0}

    _, state, watched = run(config, validate=validate)
    _, _, blind = run(config)
    network = ToyNetwork()
    network.load_state_dict(state)
    assert torch.equal(seen[-1], network.eval()(batch.latents, batch.context))
    assert [figures["loss"] for figures in watched.steps.values()] == [
        figures["loss"] for figures in blind.steps.values()
    ]


def test_the_average_follows_its_rule() -> None:
    config = toy_config()
    engine = DDPEngine(ToyNetwork(), forward=forward, loss=loss, config=config)
    ema = EMA(engine)
    expected = engine.local_parameters()["into.weight"].clone()
    for number in range(1, 6):
        engine.train_step(toy_batch(4 * number, 4), lr=1e-2)
        ema.update()
        decay = min(0.9999, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * engine.local_parameters()["into.weight"]
    assert torch.allclose(ema.state_dict()["into.weight"], expected, rtol=1e-6, atol=1e-7)


class Poisoned(ToySource):
    """The sixth batch holds a NaN in one sample."""

    def epoch(self, position: Position) -> Iterator[Batch]:
        for number, batch in enumerate(super().epoch(position), position.batch):
            if number == 5:
                latents = batch.latents.clone()
                latents[1, 0, 0, 0] = float("nan")
                yield replace(batch, latents=latents)
            else:
                yield batch


def test_a_nan_stops_the_run_with_the_keys_and_a_checkpoint_from_before(tmp_path: Path) -> None:
    store = kept_in(tmp_path, keep=2)
    with pytest.raises(NonFiniteLossError) as caught:
        run(
            toy_config(checkpoint_every=2, micro_batch=2),
            Poisoned(batch_size=4, rank=0, ranks=1),
            checkpoints=store,
        )
    assert caught.value.step == 6
    assert caught.value.keys == ("sample-21",)
    assert visible(tmp_path) == [4, 5]
    assert "the state before it is in " in str(caught.value)
    assert "step-00000005-" in str(caught.value)


def test_a_nan_with_broken_weights_names_the_checkpoint_before(tmp_path: Path) -> None:
    engines: list[Engine] = []

    class Breaking(ToySource):
        def epoch(self, position: Position) -> Iterator[Batch]:
            for number, batch in enumerate(super().epoch(position), position.batch):
                if number == 5:
                    engines[0].local_parameters()["out.weight"].fill_(float("nan"))
                yield batch

    def kept(engine: Engine) -> dict[str, float]:
        engines.append(engine)
        return {"miou": 0.0}

    with pytest.raises(
        NonFiniteLossError, match=r"the last checkpoint from before it is .*step-00000004-"
    ) as caught:
        run(
            toy_config(checkpoint_every=2, validate_every=1),
            Breaking(batch_size=4, rank=0, ranks=1),
            validate=kept,
            checkpoints=kept_in(tmp_path, keep=2),
        )
    assert len(caught.value.keys) == 4  # no sample is to blame
    assert visible(tmp_path) == [2, 4]


def test_a_validation_without_numbers_stops_it_too(tmp_path: Path) -> None:
    def broken(engine: Engine) -> dict[str, float]:
        if engine.step < 5:
            return {"miou": 0.0}
        raise NonFinitePredictionError(step=engine.step, keys=("0a", "0b"))

    said = r"validation after step 5 is not finite; samples: 0a, 0b; the last checkpoint .*step-00000004-"
    for every in (1, 5):  # the last one comes after the loop
        with pytest.raises(NonFinitePredictionError, match=said):
            run(
                toy_config(steps=5, checkpoint_every=2, validate_every=every if every == 1 else None),
                ToySource(batch_size=4, rank=0, ranks=1),
                validate=broken,
                checkpoints=kept_in(tmp_path / str(every), keep=2),
            )


class Wild(ToySource):
    """The sixth batch holds a sample whose loss is huge."""

    def epoch(self, position: Position) -> Iterator[Batch]:
        for number, batch in enumerate(super().epoch(position), position.batch):
            if number == 5:
                masks = batch.masks.clone()
                masks[2] = 1e4
                yield replace(batch, masks=masks)
            else:
                yield batch


def test_an_exploding_loss_stops_the_run_unless_it_may(tmp_path: Path) -> None:
    wild = Wild(batch_size=4, rank=0, ranks=1)
    outcome, *_ = run(toy_config(steps=6, stop_above_loss=None), wild)
    assert outcome.steps == 6
    with pytest.raises(ExplodingLossError, match=r"above train\.stop_above_loss=100;") as caught:
        run(
            toy_config(checkpoint_every=2),
            wild,
            checkpoints=kept_in(tmp_path, keep=2),
        )
    assert caught.value.keys == ("sample-22",)
    assert visible(tmp_path) == [2, 4]
    assert "the last checkpoint from before it is" in str(caught.value)


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step() -> None:
    config = toy_config()

    def steep(logits: Tensor, masks: Tensor, weight: Tensor) -> Tensor:
        return (logits * 0).sqrt().sum() + 1.0  # its loss is 1, its gradient infinite times nothing

    engine = DDPEngine(ToyNetwork(), forward=forward, loss=steep, config=config)
    before = {name: tensor.clone() for name, tensor in engine.local_parameters().items()}
    with pytest.raises(NonFiniteGradientError, match="gradient of step 1 is not finite") as caught:
        engine.train_step(toy_batch(0, 4), lr=1e-2)
    assert not caught.value.weights_changed
    assert caught.value.keys == ("sample-0", "sample-1", "sample-2", "sample-3")
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.local_parameters().items())


class Notified(ToySource):
    """While the sixth batch is fetched, the process is told to leave."""

    def epoch(self, position: Position) -> Iterator[Batch]:
        for number, batch in enumerate(super().epoch(position), position.batch):
            if (position.epoch, number) == (0, 5):
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


def test_on_notice_the_run_keeps_its_state_and_leaves(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    config = toy_config(checkpoint_every=4)
    _, expected, whole = run(config)
    store = kept_in(tmp_path, keep=2)
    with pytest.raises(Preempted, match=r"after step 6; checkpoint .*/step-00000006-") as left:
        run(config, Notified(batch_size=4, rank=0, ranks=1), checkpoints=store)
    assert left.value.code == EXIT_CODE
    assert signal.getsignal(signal.SIGTERM) is before
    assert visible(tmp_path) == [4, 6]
    _, state, resumed = run(config, checkpoints=store)
    assert resumed.starts == [(6, 20)]
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert resumed.steps[7]["loss"] == whole.steps[7]["loss"]


def test_a_nan_crosses_processes_whole() -> None:
    error = pickle.loads(pickle.dumps(NonFiniteLossError(step=3, keys=("a", "b"))))
    assert (error.step, error.keys) == (3, ("a", "b"))
    assert str(error) == "the loss of step 3 is not finite; samples: a, b"
    many = ExplodingLossError(step=3, keys=tuple("abcdefghij"), loss=12.5, limit=10.0)
    many.checkpoint = "the last checkpoint from before it is X"
    assert str(pickle.loads(pickle.dumps(many))) == str(many)
    assert (
        "is 12.5, above train.stop_above_loss=10; samples: a, b, c, d, e, f, g, h and 2 more; the last"
        in str(many)
    )


def test_micro_batches_and_padding_change_rounding_only() -> None:
    batch = toy_batch(0, 8, padding=3)
    losses = []
    for micro in (8, 2, 1):
        config = toy_config(batch_size=8, micro_batch=micro)
        engine = DDPEngine(ToyNetwork(), forward=forward, loss=loss, config=config)
        losses.append([engine.train_step(batch, lr=1e-2).loss for _ in range(5)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)
    network = ToyNetwork()
    real = toy_batch(0, 5)
    alone = loss(network(real.latents, real.context), real.masks, real.weight)
    assert losses[0][0] == pytest.approx(float(alone.detach()), rel=1e-6)


def test_a_metric_that_is_not_measured_is_named() -> None:
    with pytest.raises(
        UserError, match="best_metric='miou' is not measured in validation: choose one of ap, loss"
    ):
        run(toy_config(steps=1), validate=lambda engine: {"loss": 1.0, "ap": 0.0})


def test_too_few_samples_for_a_batch() -> None:
    with pytest.raises(UserError, match="too few samples"):
        run(toy_config(), ToySource(batch_size=4, rank=0, ranks=1, batches=0))


def test_the_log_has_means_and_speeds() -> None:
    _, _, every = run(toy_config(steps=6))
    _, _, rare = run(toy_config(steps=6, log_every=4))
    assert sorted(rare.steps) == [4, 6]
    assert rare.steps[4]["loss"] == pytest.approx(sum(every.steps[step]["loss"] for step in range(1, 5)) / 4)
    assert rare.steps[6]["epoch"] == 0.75
    assert rare.steps[4]["samples_per_second"] > 0
    assert 0 <= rare.steps[4]["data_wait_share"] <= 1


def test_bf16_trains_with_fp32_weights() -> None:
    outcome, state, recorder = run(toy_config(steps=30, precision="bf16"))
    assert outcome.steps == 30
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert recorder.steps[30]["loss"] < 0.8 * recorder.steps[1]["loss"]


def test_a_warm_up_longer_than_the_epochs_is_refused_before_a_step() -> None:
    with pytest.raises(
        UserError, match=r"warmup_steps=50 leaves nothing of the \d+ steps that train\.epochs=1"
    ):
        run(toy_config(steps=None, epochs=1, warmup_steps=50))
