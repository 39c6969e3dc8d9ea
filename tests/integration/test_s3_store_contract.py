"""One contract, held by the folder and by S3 on a real server."""

import multiprocessing
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ldznet.errors import UserError


def test_put_get_stat_delete(store):
    assert store.stat("a/b") is None
    store.put("a/b", b"one")
    assert store.get("a/b") == b"one"
    first = store.stat("a/b")
    assert (first.key, first.size) == ("a/b", 3)
    store.put("a/b", b"two")
    assert store.get("a/b") == b"two"
    assert store.stat("a/b").etag != first.etag
    store.delete("a/b")
    store.delete("a/b")
    assert store.stat("a/b") is None


def test_the_time_of_a_write_is_told_by_a_look_and_by_a_listing(store):
    store.put("a", b"1")
    first = store.stat("a").modified
    assert abs(first - time.time()) < 600
    assert [info.modified for info in store.list()] == [first]
    time.sleep(1.1)  # S3 tells whole seconds
    store.put("a", b"2")
    assert first < store.stat("a").modified < first + 600


def test_a_missing_key_is_a_key_error(store):
    for read in (
        lambda: store.get("no/such"),
        lambda: store.get_range("no/such", start=0, length=1),
        lambda: store.get_range("no/such", start=0, length=0),
        lambda: store.get_range_into("no/such", start=0, buffers=[memoryview(bytearray(1))]),
        lambda: store.get_range_into("no/such", start=0, buffers=[]),
    ):
        with pytest.raises(KeyError, match="no/such"):
            read()


def test_a_range_is_exact_or_an_error(store):
    store.put("a", bytes(range(256)))
    assert store.get_range("a", start=0, length=256) == bytes(range(256))
    assert store.get_range("a", start=10, length=5) == bytes(range(10, 15))
    assert store.get_range("a", start=255, length=1) == b"\xff"
    assert store.get_range("a", start=3, length=0) == b""
    for start, length in ((250, 7), (256, 1), (10_000, 10)):
        with pytest.raises(OSError, match="a ends"):
            store.get_range("a", start=start, length=length)


def test_a_range_fills_buffers_in_their_order_or_is_an_error(store):
    store.put("a", bytes(range(256)) * 4000)
    for start, sizes in (
        (0, [256]),
        (10, [0, 3, 0, 0, 250]),
        (255, [1]),
        (1, [1] * 3000),
        (77, [900_000, 7, 100_000]),
    ):
        buffers = [memoryview(bytearray(size)) for size in sizes]
        store.get_range_into("a", start=start, buffers=buffers)
        assert b"".join(buffers) == store.get_range("a", start=start, length=sum(sizes))
    store.get_range_into("a", start=3, buffers=[memoryview(bytearray(0))])
    for start, sizes in ((1_023_999, [1, 1]), (1_024_000, [1]), (0, [1_024_000, 5]), (2_000_000, [10])):
        with pytest.raises(OSError, match="a ends"):
            store.get_range_into("a", start=start, buffers=[memoryview(bytearray(size)) for size in sizes])


def test_an_empty_object_is_an_object(store):
    assert store.create("empty", b"")
    assert store.get("empty") == b""
    assert store.stat("empty").size == 0
    assert not store.create("empty", b"x")


def test_a_file_is_streamed(store, tmp_path):
    body = os.urandom(3_000_000)
    source = tmp_path / "body"
    source.write_bytes(body)
    store.put("a", source)
    assert store.get("a") == body
    assert store.create("b", source)
    assert not store.create("b", source)
    assert store.get_range("b", start=2_999_990, length=10) == body[-10:]


@pytest.mark.parametrize("size", [10, 400_000])
def test_of_eight_racing_creators_one_wins_and_its_bytes_stay(store, size):
    for turn in range(2):
        start = threading.Barrier(8)

        def create(number, key=f"race/{turn}", start=start):
            start.wait()
            return store.create(key, bytes([number]) * size)

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(create, range(8)))
        assert sum(won) == 1
        assert store.get(f"race/{turn}") == bytes([won.index(True)]) * size


def test_replace_holds_only_over_the_version_named(store):
    store.put("a", b"one")
    etag = store.stat("a").etag
    assert store.replace("a", b"two", etag=etag)
    assert not store.replace("a", b"three", etag=etag)
    assert store.get("a") == b"two"
    store.delete("a")
    assert not store.replace("a", b"four", etag=etag)
    assert store.stat("a") is None


def test_of_racing_repairs_one_wins(store):
    store.put("a", b"broken")
    etag = store.stat("a").etag
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: store.replace("a", b"%d" % number, etag=etag), range(8)))
    assert sum(won) == 1
    assert store.get("a") == b"%d" % won.index(True)


def test_a_listing_is_in_key_order_and_starts_with_its_prefix(store):
    keys = ["a-b", "a.txt", "a/b", "a/c/d", "a/c-d", "a+b", "a0", "b", "ab/1", "z z", "é", "%41"]
    for key in keys:
        store.put(key, key.encode())
    for prefix in ("", "a", "a/", "a/c", "a/c/", "z", "no", "%"):
        listed = list(store.list(prefix))
        assert [info.key for info in listed] == sorted(key for key in keys if key.startswith(prefix))
        assert listed == [store.stat(info.key) for info in listed]


def test_a_listing_of_an_untouched_store_is_empty(store):
    assert list(store.list()) == []
    assert list(store.list("a/b")) == []


@pytest.mark.parametrize("key", ["../a", "/a", "a//b", "a/", "", "a/../../b", "."])
def test_a_key_that_leaves_the_store_is_refused(store, key):
    for call in (store.get, store.stat, store.delete, lambda key: store.put(key, b"x")):
        with pytest.raises(UserError):
            call(key)
    assert list(store.list()) == []


def test_a_pickled_copy_is_the_same_store(store):
    store.put("a", b"1")
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store
    assert copy.get("a") == b"1"


def _read_in_child(store, answers):
    answers.put(store.get("a"))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_process_may_go_on_with_it(store, method):
    store.put("a", b"1")  # so that the parent has connections to share by mistake
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    child = context.Process(target=_read_in_child, args=(store, answers))
    child.start()
    assert answers.get(timeout=60) == b"1"
    child.join()
    assert child.exitcode == 0
    assert store.get("a") == b"1"


def test_threads_share_a_store(store):
    body = os.urandom(200_000)
    store.put("a", body)

    def read(number):
        return store.get_range("a", start=number * 1000, length=1000) == body[number * 1000 :][:1000]

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(read, range(200)))


def test_there_is_nothing_unfinished_after_finished_writes(store):
    store.put("a", b"1")
    assert store.discard_unfinished(older_than_s=-60) == 0
