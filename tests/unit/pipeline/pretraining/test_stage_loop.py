"""The loop of one stage: learns, resumes bit for bit, stops in time."""

import json
import time
from itertools import count

import pytest
import torch
from torch import nn

from ldznet.errors import UserError
from pipeline.pretraining.curve_file import CurveFile
from pipeline.pretraining.folder_checkpoints import FolderCheckpoints
from pipeline.pretraining.loop import StageLoop, learning_rate
from pipeline.pretraining.recipe import StageTraining
from pipeline.training.divergence import DivergenceError


class Line(nn.Module):
    """Fits y = 2x + 1."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        error = (self.layers(x) - (2 * x + 1)).square().mean()
        return {"loss": error}


class Points:
    def __init__(self, *, bad_from=None):
        self.bad_from = bad_from
        self.closed = False

    def from_step(self, step):
        try:
            for each in count(step):
                x = torch.rand(16, 1, generator=torch.Generator().manual_seed(each))
                yield {"x": x * float("nan") if self.bad_from is not None and each >= self.bad_from else x}
        finally:
            self.closed = True


def config(**changes):
    chosen = {"steps": 12, "batch_size": 16, "lr": 0.05, "warmup_steps": 2, "checkpoint_every": 4}
    return StageTraining(**(chosen | {"log_every": 3, "validate_every": 6} | changes))


def loop(folder, *, points=None, identity="x", **changes):
    line = Line()
    made = StageLoop(
        objective=line,
        batches=points or Points(),
        config=config(**changes),
        device=torch.device("cpu"),
        identity=identity,
        checkpoints=FolderCheckpoints(folder / "checkpoints", keep=2),
        observer=CurveFile(folder / "curves", "line"),
        validate=lambda: {"error": line(torch.ones(4, 1))["loss"].item()},
    )
    return line, made


def curve(folder):
    return [json.loads(line) for line in (folder / "curves" / "line.jsonl").read_text().splitlines()]


def test_it_learns_and_validates_the_average(tmp_path):
    line, made = loop(tmp_path, steps=300, validate_every=100)
    outcome = made.run()
    assert outcome.finished and outcome.step == 300
    assert outcome.metrics["error"] < 0.02
    own = line(torch.ones(4, 1))["loss"].item()
    with made.averaged():
        assert line(torch.ones(4, 1))["loss"].item() == pytest.approx(outcome.metrics["error"], rel=1e-5)
    assert line(torch.ones(4, 1))["loss"].item() == own


def test_a_resumed_run_takes_the_very_same_steps(tmp_path):
    whole, straight = loop(tmp_path / "whole")
    straight.run()
    points = Points()

    class StoppedError(Exception):
        pass

    def stop(*_args, **_more):
        raise StoppedError

    _, begun = loop(tmp_path / "parts", points=points)
    begun._observer.on_validation = stop  # killed at step 6, after the checkpoint of step 4
    with pytest.raises(StoppedError):
        begun.run()
    assert points.closed
    again, resumed = loop(tmp_path / "parts")
    outcome = resumed.run()
    assert outcome.step == 12
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    for name, weights in straight.average.weights.items():
        assert torch.equal(weights, resumed.average.weights[name])
    steps = [(each["step"], each["kind"]) for each in curve(tmp_path / "parts")]
    assert steps == [(each["step"], each["kind"]) for each in curve(tmp_path / "whole")]
    assert len(set(steps)) == len(steps)


def test_a_finished_run_has_nothing_to_do(tmp_path):
    loop(tmp_path)[1].run()
    line, again = loop(tmp_path)
    before = [tensor.clone() for tensor in line.parameters()]
    assert again.run().finished
    assert any(
        not torch.equal(a, b) for a, b in zip(before, line.parameters(), strict=True)
    )  # read, not trained
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step-00000008",
        "step-00000012",
    ]


def test_more_steps_go_on_from_a_finished_run(tmp_path):
    loop(tmp_path, schedule="constant")[1].run()
    assert loop(tmp_path, schedule="constant", steps=15)[1].run().step == 15


def test_when_time_is_up_a_checkpoint_is_written(tmp_path):
    points = Points()
    _, made = loop(
        tmp_path, points=points, steps=10**6, log_every=1, checkpoint_every=10**6, validate_every=10**6
    )
    outcome = made.run(until=time.monotonic() + 0.3)
    assert not outcome.finished and outcome.step > 0
    assert points.closed
    assert (tmp_path / "checkpoints" / f"step-{outcome.step:08d}").is_dir()


def test_another_configurations_checkpoint_is_refused(tmp_path):
    loop(tmp_path)[1].run()
    with pytest.raises(UserError, match="another configuration"):
        loop(tmp_path, identity="y")[1].run()


def test_a_loss_that_is_not_finite_ends_it_before_the_next_checkpoint(tmp_path):
    with pytest.raises(DivergenceError, match="step 8"):
        loop(tmp_path, points=Points(bad_from=6), log_every=100)[1].run()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


def test_an_interrupted_copy_is_no_checkpoint(tmp_path):
    store = FolderCheckpoints(tmp_path, keep=2)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "state").write_text("one")
    store.save(tmp_path / "made", step=4)
    (tmp_path / "step-00000008.partial").mkdir()
    assert store.latest() == tmp_path / "step-00000004"


def test_the_rate_warms_up_and_falls_to_nothing():
    cosine = config(steps=100, warmup_steps=10, lr=1.0)
    rates = [learning_rate(cosine, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001
    assert learning_rate(config(schedule="constant", lr=1.0), 11) == 1.0
