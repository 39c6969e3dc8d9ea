"""`ldznet submit` follows a job through lost connections: its log is said once, the exit code is the job's."""

import os
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from unit.jobs.jobs_api_server import JobsApi

from jobs import submit_following
from jobs.submit import main
from jobs.submit_door import ADDRESS_VARIABLES
from jobs.submit_following import FollowedLog
from pipeline.object_store.retries import Retries

LOG = "one\ntwo\nthree\n"
FOREVER = 10**6


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobsApi]:
    for name in (*ADDRESS_VARIABLES, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(submit_following, "_WAITS", Retries(first_wait_s=0.02, longest_wait_s=0.05))
    server = JobsApi(tails=[(LOG, "close")])
    server.add("it", "RUNNING")
    with server.served():
        yield server


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """What a shell starts in the background does not, nor then do these tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def attach(api: JobsApi) -> int:
    return main(["--attach", "it", "--address", api.address])


def ends_at(api: JobsApi, connection: int, status: str, code: int | None, message: str = "") -> None:
    def on_tail(number: int) -> None:
        if number == connection:
            api.add("it", status, code=code, message=message)

    api.on_tail = on_tail


@pytest.mark.parametrize("lost", ["abort", "close", "refuse"])
def test_a_log_goes_on_where_it_was_lost(lost: str, api: JobsApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.tails = [(LOG[:6], "abort"), (LOG[:9], lost), (LOG[:9], lost), (LOG, "close")]
    ends_at(api, 4, "SUCCEEDED", 0)
    assert attach(api) == 0
    assert capsys.readouterr().out == f"{LOG}it: SUCCEEDED\n"
    assert api.connections == 4


@pytest.mark.parametrize(
    ("status", "code", "expected"), [("FAILED", 2, 2), ("FAILED", 1, 1), ("STOPPED", None, 1)]
)
def test_a_head_that_was_away_tells_how_the_job_ended_meanwhile(
    status: str, code: int | None, expected: int, api: JobsApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.tails = [(LOG[:6], "close"), (LOG, "close")]

    def on_tail(number: int) -> None:
        if number == 1:
            api.errors, api.away = 2, 2
            api.add("it", status, code=code, message="ended while nobody saw")

    api.on_tail = on_tail
    assert attach(api) == expected
    message = "" if code is not None else "ended while nobody saw\n"
    assert capsys.readouterr().out == f"{LOG}it: {status}\n{message}"


def test_the_end_is_told_where_the_log_is_lost_for_good(
    api: JobsApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.tails = [(LOG[:6], "abort"), ("", "refuse")]
    ends_at(api, 2, "FAILED", 2)
    assert attach(api) == 2
    assert capsys.readouterr().out == f"{LOG[:6]}it: FAILED\n"


@pytest.mark.parametrize("away", ["abort", "close"])
def test_a_head_that_stays_away_is_given_up_in_one_line(
    away: str, api: JobsApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit_following, "_LOST_S", 0.3)
    api.tails = [(LOG[:6], away)]

    def on_tail(number: int) -> None:
        api.away = FOREVER

    api.on_tail = on_tail
    assert attach(api) == 1
    shown = capsys.readouterr()
    assert shown.out == LOG[:6]
    assert shown.err.count("\n") == 1
    assert f"{api.address} does not answer any more; it may go on. Come back: " in shown.err
    assert f"ldznet submit --attach it --address {api.address}" in shown.err
    assert api.connections > 2


def test_a_head_without_the_job_is_told(api: JobsApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.tails = [(LOG[:6], "abort")]

    def on_tail(number: int) -> None:
        api.jobs = {}

    api.on_tail = on_tail
    assert attach(api) == 1
    shown = capsys.readouterr().err
    assert f"{api.address} knows no job it any more: its head was started again" in shown
    assert shown.count("\n") == 1


def test_a_silent_connection_is_made_again(
    api: JobsApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit_following, "_SILENT_S", 0.5)
    api.tails = [(LOG[:6], "hang"), (LOG, "close")]
    ends_at(api, 2, "SUCCEEDED", 0)
    assert attach(api) == 0
    assert capsys.readouterr().out == f"{LOG}it: SUCCEEDED\n"


def test_ctrl_c_while_a_job_is_being_sent_tells_how_to_come_back(
    api: JobsApi,
    hears_ctrl_c: None,
    small_recipe: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = small_recipe()
    api.on_post = lambda: os.kill(os.getpid(), signal.SIGINT)
    words = ["train", str(recipe), "--working-dir", str(recipe.parent), "--address", api.address]
    assert main(words) == 130
    name = api.posted[0]["submission_id"]
    told = capsys.readouterr().out
    assert f"left: {name} was being sent, and runs if the cluster took it. Come back: " in told
    command = told.partition("Come back: ")[2].partition("   End it")[0]
    assert shlex.split(command) == ["ldznet", "submit", "--attach", name, "--address", api.address]


def test_what_is_printed_works_as_pasted(
    api: JobsApi, small_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small_recipe()
    words = ["train", str(recipe), "--working-dir", str(recipe.parent), "--no-wait", "--address", api.address]
    assert main(words) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    for action in ("Come back: ", "End it: "):
        command = shlex.split(told.partition(action)[2].partition("   ")[0])
        assert command[:2] == ["ldznet", "submit"]
        assert main(command[2:]) == 0


def test_without_the_flag_the_address_is_the_environments(
    api: JobsApi,
    small_recipe: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(ADDRESS_VARIABLES[0], api.address)
    recipe = small_recipe()
    assert main(["train", str(recipe), "--working-dir", str(recipe.parent), "--no-wait"]) == 0
    assert "--address" not in capsys.readouterr().out


def test_a_log_told_again_from_its_beginning_is_said_once() -> None:
    said: list[str] = []
    log = FollowedLog(said.append)
    for parts in (["one\n", "two\n"], ["one\ntw", "o\nthr"], ["one\n", "two\nthree\n"]):
        log.rewind()
        for part in parts:
            log.add(part)
    assert "".join(said) == "one\ntwo\nthree\n"
