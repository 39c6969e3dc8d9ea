"""The S3 server of infra/kuberay/services runs by its own commands, on a read-only root, and lets nobody else in."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kustomization import documents_of

from ldznet.errors import UserError
from pipeline.services.credentials_file import new_credentials
from pipeline.services.seaweedfs import weed_program

HERE = Path(__file__).parent
MANIFEST = HERE.parents[2] / "infra" / "kuberay" / "services" / "object-store.yaml"
# A network of its own, so that the ports are those of the manifest; all ends with its first process.
ALONE = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


@pytest.fixture(scope="module")
def alone() -> list[str]:
    """What a command is begun with to be alone; skips where this machine does not let us."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare: Linux alone has namespaces")
    command = ALONE if os.geteuid() == 0 else [*ALONE, "--map-root-user"]
    probe = [*command, "unshare", "--mount", "sh", "-ec", "mount --bind / /mnt; mount -o remount,bind,ro /"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("namespaces and mounts in them are not allowed here")
    return command


def containers(tmp_path: Path) -> list[dict[str, Any]]:
    """Words and variables of the manifest's containers, Secrets filled in."""
    made = new_credentials()
    known = made.clients | made.servers
    (deployment,) = [each for each in documents_of(MANIFEST) if each["kind"] == "Deployment"]
    found = []
    for one in deployment["spec"]["template"]["spec"]["containers"]:
        program, *words = [*one["command"], *one["args"]]
        assert program == "weed"
        environment = {each["name"]: known[each["valueFrom"]["secretKeyRef"]["key"]] for each in one["env"]}
        words = ["-dir=/mnt" if word == "-dir=/data" else word for word in words]
        log = str(tmp_path / f"{one['name']}.log")
        found.append({"words": words, "environment": environment, "log": log})
    return found


def test_the_gateway_takes_objects_from_its_user_alone(tmp_path: Path, alone: list[str]) -> None:
    try:
        weed = str(weed_program())
    except UserError as error:
        pytest.skip(str(error))
    asked: dict[str, Any] = {"weed": weed, "containers": containers(tmp_path)}
    for name in ("data", "scratch"):
        asked[name] = str(tmp_path / name)
        (tmp_path / name).mkdir()
    done = subprocess.run(
        [*alone, sys.executable, str(HERE / "object_store_pod.py")],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    logs = "\n".join(Path(one["log"]).read_text(errors="replace")[-2000:] for one in asked["containers"])
    assert done.returncode == 0, done.stderr + logs
    assert json.loads(done.stdout) == {
        "read back": "kept",
        "another secret": "SignatureDoesNotMatch",
        "a user of one's own": "UNAUTHENTICATED",
        "as that user": "InvalidAccessKeyId",
        "open to others": [8333, 18333],
    }
    assert (tmp_path / "data" / "mini.options").is_file()
