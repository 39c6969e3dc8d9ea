"""`ldznet services`: three servers without containers, closed to strangers, that outlive the shell and go when told."""

import base64
import http.client
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import psutil
import pytest
from botocore.exceptions import ClientError

from ldznet.errors import UserError
from pipeline.services.ports import LOOPBACK, is_free
from pipeline.services.seaweedfs import weed_program

pytestmark = pytest.mark.long  # `make test-cluster`

PATIENCE_S = 500


@dataclass(frozen=True, kw_only=True)
class Services:
    """A folder whose services run, what `start` printed, and the processes that are theirs."""

    folder: Path
    printed: str
    environment: dict[str, str]
    family: list[psutil.Process]


def services(action: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """`ldznet services ACTION`, in a session that is closed when it returns."""
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", "services", action, "--folder", str(folder), *more],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        start_new_session=True,
    )


def sourced(path: Path) -> dict[str, str]:
    """The environment after `set -a; source FILE`, by a real shell."""
    script = f"set -a; source {path}; set +a; env -0"
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RAY_", "MLFLOW_"))
    }
    told = subprocess.run(
        ["bash", "-c", script], env=clean, capture_output=True, text=True, check=True
    ).stdout
    return dict(line.split("=", 1) for line in told.split("\0") if line)


def family_of(record: Path) -> list[psutil.Process]:
    keeper = psutil.Process(json.loads(record.read_text())["keeper"]["pid"])
    return [keeper, *keeper.children(recursive=True)]


def listening(processes: list[psutil.Process]) -> dict[int, str]:
    """Port: address of everything that the processes listen on."""
    found = [connection for process in processes for connection in process.net_connections("inet")]
    return {each.laddr.port: each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN}


def status_of(address: str, path: str, authorization: str | None) -> int:
    host = address.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=30)
    try:
        headers = {"Authorization": authorization} if authorization else {}
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    try:
        weed_program()
    except UserError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("workstation") / "services"
    done = services("start", folder, "--nodes", "2")
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        family = family_of(folder / "services.json")
        yield Services(
            folder=folder,
            printed=done.stdout,
            environment=sourced(folder / "credentials.env"),
            family=family,
        )
    finally:
        stopped = services("stop", folder)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "stopped" in stopped.stdout
    _, left = psutil.wait_procs(family, timeout=5)
    assert left == []
    assert not (folder / "credentials.env").exists()
    again = services("stop", folder)
    assert (again.returncode, again.stdout) == (0, f"no services run from {folder}\n")
    assert services("status", folder).returncode == 3


def test_a_table_of_addresses_is_printed_and_no_secret(running: Services) -> None:
    for name, key in (
        ("S3", "AWS_ENDPOINT_URL"),
        ("MLflow", "MLFLOW_TRACKING_URI"),
        ("Ray", "RAY_API_SERVER_ADDRESS"),
    ):
        (line,) = [line for line in running.printed.splitlines() if line.split()[:1] == [name]]
        assert line.split()[1:3] == [running.environment[key], "well"]
    (node,) = [line for line in running.printed.splitlines() if line.split()[:1] == ["Ray-node-2"]]
    assert node.split()[2] == "well"
    written = [path.read_text(errors="replace") for path in running.folder.glob("*/*.log")]
    written += [running.printed, *(path.read_text() for path in running.folder.glob("*.log"))]
    written += [" ".join(process.cmdline()) for process in running.family if process.is_running()]
    for key in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN"):
        secret = running.environment[key]
        assert len(secret) >= 30
        assert [text for text in written if secret in text] == [], key


def test_the_credentials_are_their_owners_alone(running: Services) -> None:
    assert stat.S_IMODE((running.folder / "credentials.env").stat().st_mode) == 0o600
    inner = [path for path in running.folder.iterdir() if path.is_dir()]
    assert {path.name for path in inner} == {"seaweedfs", "mlflow", "ray"}
    for folder in (running.folder, *inner, (running.folder / "ray" / "sessions").readlink()):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder


def test_everything_listens_on_loopback(running: Services) -> None:
    addresses = listening(family_of(running.folder / "services.json"))
    assert len(addresses) >= 3
    assert {address.removeprefix("::ffff:") for address in addresses.values()} == {LOOPBACK}


def test_starting_again_starts_nothing(running: Services) -> None:
    done = services("start", running.folder)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "running already"
    assert family_of(running.folder / "services.json")[0] == running.family[0]


def test_objects_go_in_and_out_with_the_right_secret_only(running: Services) -> None:
    def client(secret: str):
        return boto3.session.Session().client(
            "s3",
            endpoint_url=running.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id=running.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=secret,
            region_name=running.environment["AWS_DEFAULT_REGION"],
        )

    s3 = client(running.environment["AWS_SECRET_ACCESS_KEY"])
    s3.put_object(Bucket="ldznet", Key="mine", Body=b"1")
    assert s3.get_object(Bucket="ldznet", Key="mine")["Body"].read() == b"1"
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client("another").put_object(Bucket="ldznet", Key="mine", Body=b"2")


def test_mlflow_records_for_its_user_only(running: Services) -> None:
    script = (
        "import mlflow\n"
        "with mlflow.start_run():\n"
        "    mlflow.log_metric('miou', 0.5)\n"
        "    mlflow.log_text('kept', 'note.txt')\n"
        "    run = mlflow.active_run().info\n"
        "print(run.run_id, run.artifact_uri, mlflow.get_run(run.run_id).data.metrics['miou'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=running.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        cwd=running.folder,
    )
    assert done.returncode == 0, done.stderr
    run_id, artifacts, metric = done.stdout.split()[-3:]
    assert (metric, artifacts.partition(":")[0]) == ("0.5", "mlflow-artifacts")
    s3 = boto3.session.Session().client(
        "s3",
        endpoint_url=running.environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=running.environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=running.environment["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
    keys = [each["Key"] for each in s3.list_objects_v2(Bucket="ldznet", Prefix="mlflow/")["Contents"]]
    assert [key for key in keys if key.endswith(f"{run_id}/artifacts/note.txt")]
    address = running.environment["MLFLOW_TRACKING_URI"]
    wrong = base64.b64encode(b"ldznet:guessed").decode()
    for authorization in (None, f"Basic {wrong}"):
        assert status_of(address, "/api/2.0/mlflow/experiments/search?max_results=1", authorization) == 401
    assert status_of(address, f"/get-artifact?path=note.txt&run_uuid={run_id}", None) == 401


def test_a_job_runs_with_the_token_only(running: Services) -> None:
    ray = Path(sys.executable).with_name("ray")
    script = (
        "import os, ray; ray.init(logging_level='error')\n"
        "print('bucket at', os.environ['AWS_ENDPOINT_URL'], 'with', len(ray.nodes()), 'nodes')"
    )
    words = [
        ray,
        "job",
        "submit",
        "--",
        "python",
        "-c",
        script,
    ]
    done = subprocess.run(
        words, env=running.environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        f"bucket at {running.environment['AWS_ENDPOINT_URL']} with 2 nodes" in done.stdout
    )  # jobs find the credentials set
    assert "succeeded" in done.stdout
    address = running.environment["RAY_API_SERVER_ADDRESS"]
    for authorization in (None, "Bearer guessed"):
        assert status_of(address, "/api/jobs/", authorization) in {401, 403}
    assert status_of(address, "/api/gcs_healthz", None) == 200  # what the image's health check asks


def test_a_killed_keeper_leaves_nothing_and_stop_tidies_up(tmp_path: Path) -> None:
    """Without MLflow and Ray, which take half a minute: the keeper is killed as soon as its S3 server runs."""
    try:
        weed_program()
    except UserError as error:
        pytest.skip(str(error))
    keeper = subprocess.Popen(
        [sys.executable, "-m", "pipeline.services.keeper", str(tmp_path)], stderr=subprocess.DEVNULL
    )
    process = psutil.Process(keeper.pid)
    until_there = (tmp_path / "mlflow" / "mlflow.log").exists
    while not until_there():
        assert keeper.poll() is None
    family = process.children(recursive=True)
    ports = listening(family)
    assert ports
    keeper.send_signal(signal.SIGKILL)
    keeper.wait()
    _, left = psutil.wait_procs(family, timeout=60)
    assert left == []
    assert [port for port in ports if not is_free(port)] == []
    assert services("stop", tmp_path).returncode == 0
