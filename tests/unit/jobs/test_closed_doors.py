"""What the product itself starts listens on loopback and asks for a token, whatever the environment says."""

import stat
from pathlib import Path

import pytest

from jobs import services
from jobs.local_ray import ray_session
from pipeline.services.mlflow_server import MlflowServer
from pipeline.services.ports import LOOPBACK
from pipeline.services.ray_head import RayHead
from pipeline.services.ray_node import RayNode


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::", "localhost.example"])  # noqa: S104 - to be refused
def test_services_are_not_bound_elsewhere(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "services"
    assert services.main(["start", "--folder", str(folder), "--host", host]) == 2
    told = capsys.readouterr().err
    assert f"--host {host}: the services listen on 127.0.0.1 alone" in told
    assert "ssh -L" in told
    assert not folder.exists()


def test_a_ray_of_our_own_is_not_open_to_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    from ldznet.errors import UserError

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(
        UserError, match=r"listen on all addresses, and RAY_AUTH_MODE=disabled lets everybody in"
    ):
        ray_session().__enter__()


def test_a_head_has_a_token_and_loopback_even_where_the_environment_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    head = RayHead(folder=tmp_path, jobs={})
    head.choose_ports()
    try:
        words = [str(word) for word in head.command()]
    finally:
        head.__exit__()
    environment = head.servers_environment()
    assert environment["RAY_AUTH_MODE"] == "token"
    assert len(environment["RAY_AUTH_TOKEN"]) >= 32
    assert environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert {f"--dashboard-host={LOOPBACK}", f"--node-ip-address={LOOPBACK}"} <= set(words)
    assert environment["RAY_AUTH_TOKEN"] not in " ".join(words)
    node = RayNode(
        folder=tmp_path, sessions=tmp_path, number=2, head="", environment=environment, secrets=head.secrets()
    )
    node.choose_ports()
    assert f"--node-ip-address={LOOPBACK}" in node.command()
    assert node.servers_environment() == environment


def test_rays_sessions_are_their_owners_alone(tmp_path: Path) -> None:
    """Ray opens the folder that it is given to everybody; the one around it stays closed."""
    head = RayHead(folder=tmp_path, jobs={})
    head.choose_ports()
    try:
        (given,) = [str(word) for word in head.command() if str(word).startswith("--temp-dir=")]
        around = Path(given.partition("=")[2]).parent
        assert around == (tmp_path / "sessions").readlink()
        assert stat.S_IMODE(around.stat().st_mode) == 0o700
    finally:
        head.__exit__()
    assert not around.exists()


def test_mlflow_asks_for_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", "/elsewhere.ini")
    server = MlflowServer(folder=tmp_path, artifacts=str(tmp_path), store={})
    server.choose_ports()
    words = [str(word) for word in server.command()]
    assert {f"--host={LOOPBACK}", "--app-name=basic-auth"} <= set(words)
    environment = server.servers_environment()
    assert len(environment["MLFLOW_AUTH_ADMIN_PASSWORD"]) >= 32
    assert environment["MLFLOW_AUTH_CONFIG_PATH"] == str(tmp_path / "access.ini")
    assert environment["MLFLOW_AUTH_ADMIN_PASSWORD"] not in " ".join(words)
