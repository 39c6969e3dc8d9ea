import pickle

import pytest

from ldznet.errors import UserError
from pipeline.object_store.files import FileStore
from pipeline.object_store.opening import open_store
from pipeline.object_store.s3 import S3Store


def test_a_path_and_its_file_url_open_the_same_folder(tmp_path):
    folder = tmp_path / "with space"
    store = open_store(str(folder))
    assert store == open_store(folder) == open_store(store.url) == FileStore(root=folder)
    store.put("a", b"1")
    assert open_store(store.url).get("a") == b"1"


def test_a_relative_path_is_taken_from_where_it_was_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = open_store("cache")
    monkeypatch.chdir("/")
    store.put("a", b"1")
    assert (tmp_path / "cache" / "a").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("url", "bucket", "prefix", "shown"),
    [
        ("s3://bucket", "bucket", "", "s3://bucket"),
        ("s3://bucket/", "bucket", "", "s3://bucket"),
        ("s3://bucket/a/b c/", "bucket", "a/b c", "s3://bucket/a/b c"),
        ("S3://bucket/a?b#c", "bucket", "a?b#c", "s3://bucket/a?b#c"),
    ],
)
def test_an_s3_url_opens_without_asking_the_network(url, bucket, prefix, shown):
    store = open_store(url)
    assert isinstance(store, S3Store)
    assert (store.bucket, store.prefix, store.url) == (bucket, prefix, shown)
    assert pickle.loads(pickle.dumps(store)) == store


@pytest.mark.parametrize(
    "url",
    [
        "gs://bucket/a",
        "https://host/a",
        "s3:/bucket/a",
        "s3:///a",
        "s3://b",
        "s3://bucket//a",
        "s3://bucket/../a",
        "file://relative/a",
        "file:/a",
        "",
    ],
)
def test_a_url_of_no_known_kind_is_refused_and_the_known_ones_named(url):
    with pytest.raises(UserError, match=r"s3://BUCKET|file:///|leaves its store|empty part") as refusal:
        open_store(url)
    assert "\n" not in str(refusal.value)


def test_credentials_in_a_url_are_refused_and_not_repeated():
    with pytest.raises(UserError) as refusal:
        open_store("s3://AKIAX:hush@bucket/a")
    assert "hush" not in str(refusal.value)
    assert "AKIAX" not in str(refusal.value)
