"""What the infrastructure may do to an S3 request, done by a proxy before a real server."""

import base64
import hashlib
import multiprocessing
import os
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
from botocore.exceptions import ClientError
from fault.chaos_proxy import Script, served

from ldznet.errors import UserError
from pipeline.object_store.opening import open_store
from pipeline.object_store.retries import Retries
from pipeline.object_store.s3 import S3Store

QUICK = Retries(tries=3, first_wait_s=0.01)
MIB = 1 << 20


@pytest.fixture
def faults(seaweedfs, monkeypatch) -> Iterator[Script]:
    plan = Script()
    with served(seaweedfs, plan) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        yield plan


@pytest.fixture
def direct(seaweedfs, s3_url):
    """The same place without the proxy."""
    store = open_store(s3_url)
    list(store.list())  # so that it has its client before the address changes
    return store


@pytest.fixture
def behind(direct, faults):
    return S3Store(bucket=direct.bucket, prefix=direct.prefix, retries=QUICK)


@pytest.fixture
def in_parts(direct, faults):
    """Everything above one MiB goes in parts."""
    return S3Store(
        bucket=direct.bucket, prefix=direct.prefix, retries=QUICK, largest_put=MIB, part_size=5 * MIB
    )


@pytest.mark.parametrize("fault", ["503", "500", "409", "429", "reset", "lose the answer", "corrupt"])
def test_a_write_survives_what_the_infrastructure_does_once(behind, direct, faults, fault):
    faults.plan["PUT"] = [fault]
    behind.put("a", b"body")
    assert direct.get("a") == b"body"
    assert faults.seen.count("PUT") == 2


@pytest.mark.parametrize("lost", [1, 2, 4])
def test_create_knows_its_own_write_again_after_lost_answers(behind, direct, faults, lost):
    behind = replace(behind, retries=replace(QUICK, tries=lost + 1))
    faults.plan["PUT"] = ["lose the answer"] * lost
    assert behind.create("a", b"body")
    assert direct.get("a") == b"body"
    assert not behind.create("a", b"body")


@pytest.mark.parametrize("fault", ["503", "409", "lose the answer"])
def test_create_does_not_take_anothers_object_for_its_own(behind, direct, faults, fault):
    direct.create("a", b"body")
    faults.plan["PUT"] = [fault]
    assert not behind.create("a", b"body")


def test_replace_knows_its_own_write_again_after_a_lost_answer(behind, direct, faults):
    direct.put("a", b"old")
    faults.plan["PUT"] = ["lose the answer"]
    assert behind.replace("a", b"new", etag=direct.stat("a").etag)
    assert direct.get("a") == b"new"


@pytest.mark.parametrize("sha256", [None, hashlib.sha256(b"body").hexdigest()], ids=["md5", "sha256"])
def test_a_body_changed_on_its_way_is_never_shown(behind, direct, faults, sha256):
    faults.plan["PUT"] = ["corrupt"] * 3
    with pytest.raises(OSError, match="in 3 tries"):
        behind.create("a", b"body", sha256=sha256)
    assert direct.stat("a") is None
    assert behind.create("a", b"body", sha256=sha256)
    assert direct.get("a") == b"body"


def test_a_body_that_is_not_what_its_sha256_says_is_refused(behind, direct):
    with pytest.raises(OSError, match="tries"):
        behind.create("a", b"body", sha256=hashlib.sha256(b"other").hexdigest())
    assert direct.stat("a") is None


def test_the_server_refuses_a_body_that_is_not_its_digests(direct):
    digest = hashlib.md5(b"other", usedforsecurity=False).digest()
    with pytest.raises(ClientError, match="BadDigest"):
        direct._client.put_object(
            Bucket=direct.bucket,
            Key=f"{direct.prefix}/a",
            Body=b"body",
            ContentMD5=base64.b64encode(digest).decode(),
        )
    assert direct.stat("a") is None


def test_a_body_cut_short_is_read_again(behind, direct, faults):
    body = os.urandom(100_000)
    direct.put("a", body)
    faults.plan["GET"] = ["cut"]
    assert behind.get("a") == body
    faults.plan["GET"] = ["cut"]
    assert behind.get_range("a", start=1000, length=50_000) == body[1000:51_000]
    for fault in ("cut", "503", "reset"):
        faults.plan["GET"] = [fault]
        buffers = [memoryview(bytearray(20_000)), memoryview(bytearray(30_000))]
        behind.get_range_into("a", start=1000, buffers=buffers)
        assert b"".join(buffers) == body[1000:51_000]


def test_a_body_always_cut_short_is_an_error(behind, direct, faults):
    direct.put("a", os.urandom(100_000))
    faults.plan["GET"] = ["cut"] * 6
    with pytest.raises(OSError, match="in 3 tries"):
        behind.get("a")
    with pytest.raises(OSError, match="in 3 tries"):
        behind.get_range("a", start=1000, length=50_000)
    faults.plan["GET"] = ["cut"] * 6
    with pytest.raises(OSError, match="in 3 tries"):
        behind.get_range_into("a", start=1000, buffers=[memoryview(bytearray(50_000))])


def test_a_listing_survives_throttling(behind, direct, faults):
    direct.put("a", b"1")
    faults.plan["GET"] = ["503", "reset"]
    assert [info.key for info in behind.list()] == ["a"]


def test_a_server_that_went_away_is_no_mistake_of_the_users(seaweedfs, direct, monkeypatch):
    with served(seaweedfs, Script()) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        store = S3Store(bucket=direct.bucket, prefix=direct.prefix, retries=QUICK)
        store.put("a", b"1")
    with pytest.raises(OSError, match="in 3 tries"):
        store.put("a", b"2")


def uploads(store):
    return store._client.list_multipart_uploads(Bucket=store.bucket, Prefix=store.prefix).get("Uploads", [])


def test_a_large_body_goes_in_parts(in_parts, direct, faults, tmp_path):
    source = tmp_path / "large"
    source.write_bytes(os.urandom(11 * MIB))
    faults.plan["PUT"] = ["503", "lose the answer"]
    in_parts.put("a", source)
    assert direct.get("a") == source.read_bytes()
    assert faults.seen.count("PUT") == 5  # three parts, two of them twice
    assert direct.stat("a").etag.endswith("-3")
    assert uploads(direct) == []


def test_a_writer_in_parts_knows_its_own_completion_again(in_parts, direct, faults):
    body = os.urandom(6 * MIB)
    faults.plan["POST"] = ["no fault", "lose the answer"]  # begin, complete
    in_parts.put("a", body)
    assert direct.get("a") == body
    assert uploads(direct) == []


def test_a_conditional_write_never_goes_in_parts(in_parts, direct):
    for write in (in_parts.create, lambda key, body: in_parts.replace(key, body, etag="0")):
        with pytest.raises(UserError, match="write smaller objects"):
            write("a", bytes(2 * MIB))
    assert direct.stat("a") is None
    assert uploads(direct) == []


def test_a_failed_upload_in_parts_is_aborted_and_shows_nothing(in_parts, direct, faults):
    faults.plan["PUT"] = ["reset"] * 100
    with pytest.raises(OSError, match="in 3 tries"):
        in_parts.put("a", os.urandom(6 * MIB))
    assert direct.stat("a") is None
    assert uploads(direct) == []


def _put(store, size):
    store.put("a", b"x" * size)


def test_a_writer_killed_between_its_parts_shows_nothing(seaweedfs, direct, monkeypatch):
    arrived, go_on = threading.Event(), threading.Event()

    def hold_the_second_part(method, path):
        if method == "PUT" and "partNumber=2" in path:
            arrived.set()
            go_on.wait(60)
            return "reset"
        return None

    with served(seaweedfs, hold_the_second_part) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        store = S3Store(bucket=direct.bucket, prefix=direct.prefix, largest_put=MIB, part_size=5 * MIB)
        writer = multiprocessing.get_context("spawn").Process(target=_put, args=(store, 11 * MIB))
        writer.start()
        assert arrived.wait(60)
        writer.kill()
        writer.join()
        go_on.set()
    assert direct.stat("a") is None
    assert list(direct.list()) == []
    assert direct.discard_unfinished(older_than_s=3600) == 0
    assert direct.discard_unfinished(older_than_s=-60) == 1
    assert uploads(direct) == []
