"""Minutes of stations: what an attempt took counts, and what is done already does not."""

from pathlib import Path

import pytest

from pipeline.results import minutes
from pipeline.results.minutes import Minutes


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of the next readings."""
    times: list[float] = []
    monkeypatch.setattr(minutes.time, "perf_counter", lambda: times.pop(0))
    return times


def test_a_station_counts_once(tmp_path: Path, clock: list[float]) -> None:
    clock += [0, 120, 500, 501]
    assert Minutes(tmp_path / "m" / "minutes.json").of("train", lambda: "model") == "model"
    again = Minutes(tmp_path / "m" / "minutes.json")
    again.of("train", lambda: "model")
    assert again.taken == Minutes(tmp_path / "m" / "minutes.json").taken == {"train": 2.0}


def test_attempts_that_were_interrupted_count_too(tmp_path: Path, clock: list[float]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    clock += [0, 60, 100, 220, 300, 360]
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            Minutes(tmp_path / "minutes.json").of("train", interrupted)
    one = Minutes(tmp_path / "minutes.json")
    assert one.taken == {}
    one.of("train", lambda: None)
    assert one.taken == {"train": 4.0}
    assert not list(tmp_path.glob("*.partial"))
