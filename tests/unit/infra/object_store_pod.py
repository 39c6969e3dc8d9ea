"""Runs the object store's containers as they are deployed, and says what they do: for a network namespace of its own.

Reads from standard input: the program `weed`, folders for the volumes, and each container's words and variables. Every
container has a mount namespace in which all is read-only but its volumes, as in the pod. Prints what it found as JSON.
"""

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
import grpc
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

GATEWAY = 8333
PATIENCE_S = 120
# The program is opened first: the volumes may hide where it lies. The working directory cannot be written to.
CONTAINER = """
exec 9<"$1"; mount --bind "$2" /mnt; mount --bind "$3" /tmp; mount -o remount,bind,ro /; cd /; shift 3
exec /proc/self/fd/9 "$@"
"""
_LISTENS = "0A"


def main() -> None:
    asked = json.load(sys.stdin)
    loopback_up()
    with ExitStack() as stack:
        running = [stack.enter_context(container(asked, one)) for one in asked["containers"]]
        stack.callback(lambda: [process.kill() for process in running])
        print(json.dumps(found(asked["containers"][0]["environment"]), default=str))  # noqa: T201 - its result
        assert [process.poll() for process in running] == [None, None], "all goes on"


def container(asked: dict[str, Any], one: dict[str, Any]) -> subprocess.Popen[bytes]:
    places = [asked["weed"], asked["data"], asked["scratch"]]
    with Path(one["log"]).open("wb") as log:
        return subprocess.Popen(
            ["unshare", "--mount", "sh", "-euc", CONTAINER, "sh", *places, *one["words"]],
            env={"PATH": os.environ["PATH"], "HOME": "/", **one["environment"]},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def found(environment: dict[str, str]) -> dict[str, Any]:
    """After a first PUT has worked."""
    owner = client(environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
    until = time.monotonic() + PATIENCE_S
    while (reason := refusal(owner)) is not None:
        assert time.monotonic() < until, reason
        time.sleep(0.1)
    return {
        "read back": owner.get_object(Bucket="ldznet", Key="mine")["Body"].read().decode(),
        "another secret": refusal(client(environment["AWS_ACCESS_KEY_ID"], "another")),
        "a user of one's own": add_user("mallory", "a secret"),
        "as that user": refusal(client("mallory", "a secret")),
        "open to others": sorted(ports_open_to_others()),
    }


def client(key: str, secret: str) -> Any:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{GATEWAY}",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10),
    )


def refusal(s3: Any) -> str | None:
    """Why an object cannot be put."""
    try:
        s3.put_object(Bucket="ldznet", Key="mine", Body=b"kept")
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    except BotoCoreError as error:
        return type(error).__name__
    return None


def add_user(key: str, secret: str) -> str:
    """Ask the gateway's gRPC port for an administrator with this key; its answer."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    credential = field(1, key.encode()) + field(2, secret.encode())
    identity = field(1, b"mallory") + field(2, credential) + field(3, b"Admin")
    with grpc.insecure_channel(f"127.0.0.1:{GATEWAY + 10_000}") as channel:
        put = channel.unary_unary("/messaging_pb.SeaweedS3IamCache/PutIdentity")
        try:
            put(field(1, identity), timeout=30)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def ports_open_to_others() -> set[int]:
    """Listened on, and not by loopback alone."""
    ports = set()
    for table, loopback in (
        ("tcp", "0100007F"),
        ("tcp6", "0" * 24 + "01000000"),
    ):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, port = local.split(":")
            if state == _LISTENS and address != loopback:
                ports.add(int(port, 16))
    return ports


def loopback_up() -> None:
    up_and_running = struct.pack("16sh14x", b"lo", 0x1 | 0x40)
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, up_and_running)  # SIOCSIFFLAGS


if __name__ == "__main__":
    main()
