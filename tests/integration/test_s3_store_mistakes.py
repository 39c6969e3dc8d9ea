"""The user's mistakes with S3 come at once, as one line, without the secret."""

import pickle

import pytest

from ldznet.errors import UserError
from pipeline.object_store.opening import open_store
from pipeline.object_store.retries import Retries
from pipeline.object_store.s3 import S3Store
from pipeline.services.ports import free_ports

CALLS = {
    "get": lambda store: store.get("a"),
    "get_range": lambda store: store.get_range("a", start=0, length=1),
    "get_range_into": lambda store: store.get_range_into("a", start=0, buffers=[memoryview(bytearray(1))]),
    "put": lambda store: store.put("a", b"1"),
    "create": lambda store: store.create("a", b"1"),
    "replace": lambda store: store.replace("a", b"1", etag="0"),
    "stat": lambda store: store.stat("a"),
    "list": lambda store: list(store.list()),
    "delete": lambda store: store.delete("a"),
}


def mistake(call, url):
    with pytest.raises(UserError) as refusal:
        CALLS[call](open_store(url))
    line = str(refusal.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("call", CALLS)
def test_a_missing_bucket_is_named_with_the_way_to_make_it(seaweedfs, call):
    line = mistake(call, "s3://no-such-bucket/a")
    assert "no-such-bucket" in line
    assert "aws s3 mb s3://no-such-bucket" in line


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_secret_is_refused_and_not_shown(seaweedfs, s3_url, monkeypatch, call):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush-hush")
    line = mistake(call, s3_url)
    assert "AWS_SECRET_ACCESS_KEY" in line
    assert "SignatureDoesNotMatch" in line
    assert "hush" not in line


@pytest.mark.parametrize("call", ["get", "stat"])
def test_an_unknown_access_key_is_refused(seaweedfs, s3_url, monkeypatch, call):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NOBODY")
    assert "InvalidAccessKeyId" in mistake(call, s3_url)


@pytest.mark.parametrize("call", ["get", "put", "list"])
def test_no_credentials_at_all(seaweedfs, s3_url, monkeypatch, tmp_path, call):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    line = mistake(call, s3_url)
    assert "set AWS_ACCESS_KEY_ID" in line


@pytest.mark.parametrize("call", ["get", "put", "list", "stat"])
def test_an_endpoint_where_nobody_answers_is_named(seaweedfs, s3_url, monkeypatch, call):
    (port,) = free_ports(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://name:hush@127.0.0.1:{port}")
    line = mistake(call, s3_url)
    assert f"http://127.0.0.1:{port}" in line
    assert "AWS_ENDPOINT_URL" in line
    assert "hush" not in line


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "http://", "http://host:port"])
def test_an_endpoint_that_is_no_address_is_refused(seaweedfs, s3_url, monkeypatch, endpoint):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert "AWS_ENDPOINT_URL" in mistake("get", s3_url)


def test_a_pickled_store_holds_no_secret(seaweedfs, s3_url):
    store = open_store(s3_url)
    store.put("a", b"1")
    pickled = pickle.dumps(store)
    for name, value in seaweedfs.environment().items():
        if name != "AWS_DEFAULT_REGION":
            assert value.encode() not in pickled
            assert value not in repr(store)


def test_a_small_page_lists_the_same_in_the_same_order(seaweedfs, s3_url):
    store = open_store(s3_url)
    keys = [f"{folder}/{number}" for folder in ("a", "a-b", "a/c") for number in range(5)] + [
        "a.txt",
        "a0",
        "é",
    ]
    for key in keys:
        store.put(key, b"1")
    whole = list(store.list())
    assert [info.key for info in whole] == sorted(keys)
    for size in (1, 2, 3, 7):
        paged = S3Store(bucket=store.bucket, prefix=store.prefix, page_size=size, retries=Retries(tries=1))
        assert list(paged.list()) == whole
        assert [info.key for info in paged.list("a/")] == sorted(key for key in keys if key.startswith("a/"))
