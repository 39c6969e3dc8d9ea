"""Files of credentials: their owner's alone, read alike by a shell and by us."""

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from jobs.services import main
from ldznet.errors import UserError
from pipeline.services.credentials_file import (
    SERVERS_FILE,
    new_credentials,
    read_credentials,
    write_credentials,
)
from pipeline.services.keeper import CREDENTIALS, RECORD, forget, installation_credentials
from pipeline.services.process_identity import ProcessIdentity


def test_a_shell_and_we_read_the_same(tmp_path: Path) -> None:
    path = tmp_path / "credentials.env"
    made = new_credentials()
    variables = made.clients | made.servers
    write_credentials(path, variables, comment="of a test")
    script = f"set -a; source {path}; env -0"
    told = subprocess.run(["bash", "-c", script], env={}, capture_output=True, text=True, check=True).stdout
    sourced = dict(line.split("=", 1) for line in told.split("\0") if line)
    assert variables.items() <= sourced.items()
    assert read_credentials(path) == variables


def test_it_is_its_owners_alone_even_over_an_open_one(tmp_path: Path) -> None:
    path = tmp_path / "credentials.env"
    path.write_text("OLD=1\n")
    path.chmod(0o644)
    write_credentials(path, {"NEW": "2"}, comment="of a test")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_credentials(path) == {"NEW": "2"}
    assert list(tmp_path.iterdir()) == [path]


def test_an_open_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "credentials.env"
    write_credentials(path, {"KEY": "1"}, comment="of a test")
    path.chmod(0o640)
    with pytest.raises(UserError, match="can be read by others: chmod 600"):
        read_credentials(path)


def test_what_would_need_quotes_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="KEY would need quotes"):
        write_credentials(tmp_path / "credentials.env", {"KEY": "$(rm)"}, comment="of a test")


SECRET = {"AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN"}
SECRET_OF_SERVERS = {"MLFLOW_FLASK_SERVER_SECRET_KEY", "WEED_JWT_FILER_SIGNING_KEY"}


def test_credentials_are_fresh_and_what_servers_know_is_apart() -> None:
    first, second = new_credentials(), new_credentials()
    for one, other, secret in (
        (first.clients, second.clients, SECRET),
        (first.servers, second.servers, SECRET_OF_SERVERS),
    ):
        assert {name for name in one if one[name] != other[name]} >= secret
    assert not set(first.clients) & set(first.servers)


def test_the_command_writes_two_files_and_never_over_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "secrets"
    assert main(["credentials", "--folder", str(folder), "--host", "10.0.0.1"]) == 0
    printed = capsys.readouterr().out
    paths = folder / "credentials.env", folder / SERVERS_FILE
    before = [read_credentials(path) for path in paths]
    assert set(before[0]) >= SECRET and set(before[1]) >= SECRET_OF_SERVERS
    assert not [
        value for name, value in (before[0] | before[1]).items() if "USER" not in name and value in printed
    ]
    assert before[0]["AWS_ENDPOINT_URL"] == "http://10.0.0.1:8333"
    assert before[0]["MLFLOW_TRACKING_URI"] == "http://10.0.0.1:5000"
    assert before[0]["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:8265", "the dashboard is on loopback"
    for missing in (None, *paths):
        if missing is not None:
            missing.rename(tmp_path / "aside")
        assert main(["credentials", "--folder", str(folder)]) == 2
        if missing is not None:
            (tmp_path / "aside").rename(missing)
    assert [read_credentials(path) for path in paths] == before


def test_the_folder_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        assert main(["credentials", "--folder", str(tmp_path / "runs" / "secrets")]) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "runs" / "secrets").stat().st_mode) == 0o700


@pytest.mark.parametrize("host", ["", "10.0.0.1:8333", "http://head", "$(id)", "a b"])
def test_what_is_no_host_is_refused(host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["credentials", "--folder", str(tmp_path / "secrets"), "--host", host]) == 2
    assert "give a name or an IPv4 address" in capsys.readouterr().err
    assert not (tmp_path / "secrets").exists()


def test_nothing_runs_from_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--folder", str(tmp_path)]) == 3
    assert main(["stop", "--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no services run from {tmp_path}\n" * 2


@pytest.mark.parametrize("left", [(CREDENTIALS, SERVERS_FILE), (CREDENTIALS,), (SERVERS_FILE,)])
def test_services_of_this_machine_are_not_started_over_an_installations_credentials(
    left: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node has credentials.env alone; where it was lost, servers.env tells whose the folder is."""
    folder = tmp_path / "services"
    assert main(["credentials", "--folder", str(folder)]) == 0
    for path in folder.iterdir():
        if path.name not in left:
            path.unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    assert main(["start", "--folder", str(folder)]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "is of an installation" in told and "--folder" in told
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_a_killed_start_left_is_no_installations(tmp_path: Path) -> None:
    write_credentials(
        tmp_path / CREDENTIALS, {"KEY": "1"}, comment="made by `ldznet services start`; use: set -a"
    )
    assert installation_credentials(tmp_path) is None
    forget(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_stop_leaves_an_installations_credentials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Made where services had been killed, so that their record was still there."""
    assert main(["credentials", "--folder", str(tmp_path)]) == 0
    with subprocess.Popen(["sleep", "600"]) as process:
        record = {"keeper": ProcessIdentity.of(process.pid).to_json(), "servers": {}}
        process.kill()
    (tmp_path / RECORD).write_text(json.dumps(record))
    assert main(["stop", "--folder", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {CREDENTIALS, SERVERS_FILE}
    assert "no services run" in capsys.readouterr().out
