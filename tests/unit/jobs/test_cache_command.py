"""`ldznet cache`: mistakes are one line and exit code 2, ages and sizes are read and written as people do."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import cli
from jobs.cache_text import age_text, ranges_text, size_text


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must be refused; gives its one line."""

    def run(*arguments: object) -> str:
        assert cli.main(["cache", *map(str, arguments)]) == 2
        shown = capfd.readouterr()
        assert shown.out == ""
        (line,) = shown.err.splitlines()
        return line

    return run


COMMANDS = (["list"], ["show", "KEY"], ["verify"], ["collect"])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_url_that_leads_nowhere(command: list[str], refused: Callable[..., str], tmp_path: Path) -> None:
    name, *rest = command
    assert f"there is no folder {tmp_path}/none" in refused(name, tmp_path / "none", *rest)
    assert "there is nothing at file:" in refused(name, tmp_path, *rest)
    assert "unknown scheme 'ftp'" in refused(name, "ftp://somewhere/cache", *rest)
    (tmp_path / "photo.jpg").write_bytes(b"x")
    assert "holds no feature cache, but 'photo.jpg'" in refused(name, tmp_path, *rest)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


@pytest.mark.parametrize("age", ["", "24", "a day", "-3h", "3 weeks"])
def test_an_age_that_is_none(age: str, refused: Callable[..., str], tmp_path: Path) -> None:
    assert "is no age: write it like" in refused("collect", tmp_path, f"--older-than={age}")


@pytest.mark.parametrize("arguments", ["--share=0", "--share=1.5", "--share=nan", "--at-once=0"])
def test_a_number_out_of_range(arguments: str, refused: Callable[..., str], tmp_path: Path) -> None:
    assert "is out of range" in refused("verify", tmp_path, arguments)


def test_the_exit_code_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["cache", "verify", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "Exit code 1 where there are any: `ldznet precompute RECIPE --repair` mends them" in told


def test_sizes_ages_and_ranges() -> None:
    assert [size_text(size) for size in (0, 999, 1000, 12_345_678, 5.1e11, 4.2e16)] == [
        "0 B",
        "999 B",
        "1 kB",
        "12.3 MB",
        "510 GB",
        "42,000 TB",
    ]
    now = time.time()
    assert [age_text(now - age) for age in (-5, 90, 3 * 3600, 49 * 3600)] == ["0 s", "2 min", "3 h", "2 d"]
    assert [ranges_text(blocks) for blocks in ((), (6,), (6, 7, 8, 10), (1, 2))] == [
        "none",
        "6",
        "6-8,10",
        "1-2",
    ]
