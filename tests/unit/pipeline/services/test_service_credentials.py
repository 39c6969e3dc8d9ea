"""Files of credentials: their owner's alone, read alike by a shell and by us."""

import stat
import subprocess
from pathlib import Path

import pytest

from jobs.services import main
from ldznet.errors import UserError
from pipeline.services.credentials_file import (
    new_compose_credentials,
    read_credentials,
    write_credentials,
)


def test_a_shell_and_we_read_the_same(tmp_path: Path) -> None:
    path = tmp_path / "credentials.env"
    variables = new_compose_credentials()
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


def test_credentials_for_compose_are_fresh_and_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = new_compose_credentials(), new_compose_credentials()
    secret = {
        "AWS_SECRET_ACCESS_KEY",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_FLASK_SERVER_SECRET_KEY",
        "RAY_AUTH_TOKEN",
    }
    assert {name for name in first if first[name] != second[name]} >= secret
    assert main(["credentials", "--folder", str(tmp_path)]) == 0
    path = tmp_path / "credentials.env"
    before = read_credentials(path)
    assert not [
        value for name, value in before.items() if name in secret and value in capsys.readouterr().out
    ]
    assert main(["credentials", "--folder", str(tmp_path)]) == 2
    assert read_credentials(path) == before


def test_nothing_runs_from_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--folder", str(tmp_path)]) == 3
    assert main(["stop", "--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no services run from {tmp_path}\n" * 2
