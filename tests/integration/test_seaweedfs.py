"""The S3 server that the project starts itself: it comes up, works, and leaves nothing behind."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import boto3
import psutil
import pytest

from ldznet.errors import UserError
from pipeline.services import seaweedfs as module
from pipeline.services.ports import LOOPBACK, free_ports, is_free
from pipeline.services.seaweedfs import Ports, SeaweedFS, weed_program

OWNER = """
import sys, threading, time
from pathlib import Path
from pipeline.services.seaweedfs import SeaweedFS

def run():
    server = SeaweedFS(folder=Path(sys.argv[1]))
    server.__enter__()
    print(server.pid, flush=True)

thread = threading.Thread(target=run)  # it ends while the server is to go on
thread.start()
thread.join()
time.sleep(600)
"""


@pytest.fixture(scope="module", autouse=True)
def _needs_a_build():
    try:
        weed_program()
    except UserError as error:
        pytest.skip(str(error))


def client(server):
    given = server.environment()
    return boto3.session.Session().client(
        "s3",
        endpoint_url=given["AWS_ENDPOINT_URL"],
        aws_access_key_id=given["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=given["AWS_SECRET_ACCESS_KEY"],
        region_name=given["AWS_DEFAULT_REGION"],
    )


def family(pid):
    """The supervisor and the server."""
    supervisor = psutil.Process(pid)
    return [supervisor, *supervisor.children(recursive=True)]


def listening(processes):
    found = [connection for process in processes for connection in process.net_connections("inet")]
    return [connection.laddr for connection in found if connection.status == psutil.CONN_LISTEN]


def unix_sockets(processes):
    paths = {connection.laddr for process in processes for connection in process.net_connections("unix")}
    return [Path(path) for path in paths if path and Path(path).is_absolute()]


def weeds():
    return {child.pid for child in psutil.Process().children(recursive=True) if child.name() == "weed"}


def gone(processes):
    """Wait for the processes' end; those that are left."""
    _, left = psutil.wait_procs(processes, timeout=30)
    return left


def test_it_starts_serves_and_leaves_nothing(tmp_path):
    with SeaweedFS(folder=tmp_path / "server", bucket="mine") as server:
        s3 = client(server)
        s3.put_object(Bucket="mine", Key="a", Body=b"1")
        assert s3.get_object(Bucket="mine", Key="a")["Body"].read() == b"1"
        assert [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]] == ["mine"]
        assert [entry["Key"] for entry in s3.list_objects_v2(Bucket="mine")["Contents"]] == ["a"]
        processes = family(server.pid)
        assert len(processes) == 2
        addresses = listening(processes)
        assert addresses
        assert {address.ip for address in addresses} == {LOOPBACK}
        sockets = unix_sockets(processes)
    assert gone(processes) == []
    assert all(is_free(address.port) for address in addresses)
    assert not any(path.exists() for path in sockets)
    with pytest.raises(RuntimeError, match="not running"):
        server.environment()


def test_the_secret_is_in_no_command_line_log_or_file(tmp_path):
    with SeaweedFS(folder=tmp_path / "server") as server:
        secret = server.environment()["AWS_SECRET_ACCESS_KEY"]
        client(server).put_object(Bucket=server.bucket, Key="a", Body=b"1")
        for process in family(server.pid):
            assert secret not in " ".join(process.cmdline())
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes()


def test_its_data_outlives_a_restart(tmp_path):
    with SeaweedFS(folder=tmp_path / "server") as server:
        client(server).put_object(Bucket=server.bucket, Key="a", Body=b"1")
    with SeaweedFS(folder=tmp_path / "server") as server:
        assert client(server).get_object(Bucket=server.bucket, Key="a")["Body"].read() == b"1"


def test_several_run_at_once(tmp_path):
    with SeaweedFS(folder=tmp_path / "one") as one, SeaweedFS(folder=tmp_path / "two") as two:
        client(one).put_object(Bucket=one.bucket, Key="a", Body=b"1")
        client(two).put_object(Bucket=two.bucket, Key="a", Body=b"2")
        assert client(one).get_object(Bucket=one.bucket, Key="a")["Body"].read() == b"1"
        ports = [{address.port for address in listening(family(server.pid))} for server in (one, two)]
        assert not ports[0] & ports[1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_its_owner_but_not_with_the_thread_that_started_it(tmp_path, number):
    folder = tmp_path / "server"
    with subprocess.Popen([sys.executable, "-c", OWNER, folder], stdout=subprocess.PIPE, text=True) as owner:
        processes = family(int(owner.stdout.readline()))
        assert len(processes) == 2
        addresses = listening(processes)
        time.sleep(0.6)  # three of the supervisor's looks at its parent
        assert all(process.is_running() for process in processes)
        owner.send_signal(number)
        owner.wait()
    assert gone(processes) == []
    assert all(is_free(address.port) for address in addresses)


def test_it_ends_when_its_supervisor_is_killed(tmp_path):
    with SeaweedFS(folder=tmp_path / "server") as server:
        processes = family(server.pid)
        sockets = unix_sockets(processes)
        processes[0].kill()
        assert gone(processes[1:]) == []
    assert gone(processes) == []
    assert not any(path.exists() for path in sockets)


def test_one_that_does_not_react_is_killed(tmp_path):
    with SeaweedFS(folder=tmp_path / "server") as server:
        server._server._grace_s = 0.1
        processes = family(server.pid)
        processes[0].suspend()  # a supervisor that no longer does anything
    assert gone(processes) == []


def test_a_taken_port_is_given_up_for_another(tmp_path, monkeypatch):
    choices = [Ports.choose(), Ports.choose()]
    monkeypatch.setattr(Ports, "choose", classmethod(lambda cls: choices.pop(0)))
    with socket.socket() as taken:
        taken.bind((LOOPBACK, choices[0].master))
        taken.listen()
        with SeaweedFS(folder=tmp_path / "server") as server:
            client(server).put_object(Bucket=server.bucket, Key="a", Body=b"1")
    assert choices == []


def test_one_that_cannot_start_says_why_in_its_own_words(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TRIES", 1)
    ports = Ports.choose()
    monkeypatch.setattr(Ports, "choose", classmethod(lambda cls: ports))
    server = SeaweedFS(folder=tmp_path / "server")
    with socket.socket() as taken:
        taken.bind((LOOPBACK, ports.filer))
        taken.listen()
        with pytest.raises(RuntimeError, match=f"did not start in 1 tries(.|\n)*{ports.filer}"):
            server.__enter__()
    assert server._server is None


def test_one_that_takes_no_put_in_time_is_stopped(tmp_path):
    before = weeds()
    server = SeaweedFS(folder=tmp_path / "server", start_within_s=-1)
    with pytest.raises(RuntimeError, match="took no PUT"):
        server.__enter__()
    assert server._server is None
    assert weeds() == before


def test_without_a_build_it_is_the_users_mistake(tmp_path, monkeypatch):
    monkeypatch.setattr(module.importlib.metadata, "files", lambda name: [])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="use a folder"):
        SeaweedFS(folder=tmp_path / "server").__enter__()


def test_free_ports_are_different_and_free():
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(is_free(port) for port in ports)
    with socket.socket() as taken:
        taken.bind((LOOPBACK, ports[0]))
        taken.listen()
        assert not is_free(ports[0])
    (port,) = free_ports(1, offset=1000)
    assert is_free(port)
    assert is_free(port + 1000)
