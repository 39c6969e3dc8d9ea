"""Each benchmark in its quick form: it runs, and leaves a record that a page can be made of. No speed is judged."""

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ldznet.errors import UserError
from pipeline.services.seaweedfs import weed_program
from tests.benchmarks import run_all
from tests.benchmarks.record import FOLDER
from tests.benchmarks.table import render

RECORDS = {
    "early_stop": {"early_stop"},
    "shared_work": {"shared_work", "published_work"},
    "precompute_overhead": {"precompute_overhead"},
    "two_workers": {"two_workers"},
    "shard_writing": {"shard_writing"},
    "loader_s3": {"loader_s3", "loader_s3_cpu", "loader_s3_webdataset"},  # LitData is no side of a quick run
    "loader_disk": {"loader_disk_webdataset"},
    "loader_first_batch": {"loader_first_batch"},
    "loader_memory": {"loader_memory"},
    "stored_types": {"stored_types", "stored_types_miou"},
    "online_training": {"cached_against_authors", "cached_against_online", "training_data_wait"},
    "checkpoint_upload": {"checkpoint_upload"},
    "plan_accuracy": {"plan_accuracy"},
    "planning": {"planning_time", "planning_memory", "resume"},
    "driver_bookkeeping": {"driver_bookkeeping"},
}
NEEDS_S3 = {
    "checkpoint_upload",
    "loader_first_batch",
    "loader_memory",
    "loader_s3",
    "online_training",
    "precompute_overhead",
    "shard_writing",
}


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", RECORDS)
def test_a_benchmark_runs_and_leaves_its_records(name: str, tmp_path: Path) -> None:
    if name in NEEDS_S3:
        try:
            weed_program()
        except UserError as error:
            pytest.skip(str(error))
    before = sorted(FOLDER.glob("*"))
    importlib.import_module(f"tests.benchmarks.{name}").main(["--quick", "--out", str(tmp_path)])
    records = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert {one for one in records if not one.endswith("_gpu")} == RECORDS[name]
    for record in records.values():
        assert record["command"].startswith(f"python -m tests.benchmarks.{name}")
        assert math.isfinite(record["value"])
        assert all(side["runs"] for side in record["sides"].values())
        assert str(tmp_path) not in json.dumps(record)
        assert f"## {record['name']}" in render([record])
    assert sorted(FOLDER.glob("*")) == before


def test_every_benchmark_is_run_by_make_bench() -> None:
    assert set(RECORDS) == set(run_all.BENCHMARKS)


def test_a_quick_run_never_replaces_a_committed_record(capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module("tests.benchmarks.early_stop")
    with pytest.raises(SystemExit, match="--quick is no measurement"):
        module.main(["--quick"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_benchmark_of_a_gpu_says_that_it_needs_one(capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module("tests.benchmarks.precompute_gpu")
    with pytest.raises(SystemExit) as ended:
        module.main([])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_the_benchmark_of_a_gpu_measures_is_measured_on_a_cpu_too(tmp_path: Path) -> None:
    from tests.benchmarks.frozen_networks import TINY
    from tests.benchmarks.made_photos import write_photos
    from tests.benchmarks.precompute_gpu import Work, measure

    write_photos(tmp_path / "data", photos=6)
    work = Work(data=tmp_path / "data", photos=6, pixels=64, per_shard=10, sizes=TINY)
    (run,) = measure(tmp_path / "variant", work, {"channels_last": True}, device="cpu", rounds=1)
    assert run.samples_a_second > 0
    assert 0 <= run.waiting < 1


def test_a_benchmark_that_fails_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[str] = []

    def run(name: str) -> int:
        ran.append(name)
        return 3 if name == "bad" else 0

    assert run_all.run_each(["good", "bad", "other"], run=run) == ["bad"]
    assert ran == ["good", "bad", "other"]
    assert "bad: exit code 3" in capsys.readouterr().out
