"""The adaptation of docs/results.md in small: every system and control has its rows."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.local_ray import ray_session
from jobs.results import ADAPTED
from jobs.results_adapted import adapt
from pipeline.results.record import ResultRecord

pytestmark = pytest.mark.long  # `make test-cluster`


@pytest.fixture
def slots() -> Iterator[None]:
    with ray_session(cpus=2):
        yield


@pytest.mark.usefixtures("slots")
def test_the_network_is_scored_before_and_after_beside_its_controls(tmp_path: Path) -> None:
    counts = "{train: 0, val: 0, test: 0, foreign_train: 8, foreign_val: 4, foreign: 6}"
    overrides = [
        f"output={tmp_path}/run",
        f"data.root={tmp_path}/data",
        f"cache.url={tmp_path}/cache",
        f"scenes.counts={counts}",
        "train.batch_size=4",
        "train.epochs=1",
        "train.warmup_steps=0",
        "train.workers=1",
        "evaluate.bootstrap=20",
        "evaluate.protocols=[clipseg,original]",
    ]
    adapt(ADAPTED, overrides, command="make it", into=tmp_path / "docs")
    record = ResultRecord.load(tmp_path / "docs" / "adapted.json")
    found = {(row.model, row.set_name) for row in record.rows}
    both = {"scenes-128-ldznet", "ldznet-adapted"}
    assert found == {(model, name) for model in both for name in ("foreign", "shuffled", "hidden")} | {
        ("saliency", "hidden"),
        ("everything-drawn", "foreign"),
        ("everything-drawn", "hidden"),
    }
    assert len(record.rows) == len(found)  # one protocol's
    assert {row.model for row in record.rows if row.plain_masks} == {"everything-drawn"}
    assert [(row.first, row.second) for row in record.differences] == [
        ("ldznet-adapted", "scenes-128-ldznet")
    ]
    assert set(record.minutes) >= {"train", "train without phrases"}
    assert (tmp_path / "docs" / "adapted.jpg").is_file()
