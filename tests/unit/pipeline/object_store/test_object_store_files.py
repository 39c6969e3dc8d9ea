import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ldznet.errors import UserError
from pipeline.object_store.files import FileStore

WRITER = """
import sys
from pathlib import Path
from pipeline.object_store.opening import open_store
getattr(open_store(sys.argv[1]), sys.argv[2])(sys.argv[3], Path(sys.argv[4]))
"""


@pytest.fixture
def folder_store(tmp_path):
    return FileStore(root=tmp_path / "store")


def hidden_files(store):
    return [path for path in store.root.rglob("*.partial") if path.stat().st_size > 0]


@pytest.mark.parametrize("call", ["put", "create"])
def test_a_writer_killed_in_the_middle_leaves_nothing_visible(folder_store, tmp_path, call):
    folder_store.put("folder/old", b"old")
    before = list(folder_store.list())
    key = "folder/old" if call == "put" else "folder/new"
    source = tmp_path / "endless"  # a pipe: the writer stands in its middle until we close it
    os.mkfifo(source)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, folder_store.url, call, key, source])
    with source.open("wb") as pipe:
        pipe.write(b"x" * (2 << 20))
        pipe.flush()
        while not hidden_files(folder_store):
            assert writer.poll() is None
            time.sleep(0.01)
        writer.kill()
        assert writer.wait() == -signal.SIGKILL
    assert list(folder_store.list()) == before
    assert folder_store.get("folder/old") == b"old"
    assert folder_store.discard_unfinished(older_than_s=3600) == 0
    assert folder_store.discard_unfinished(older_than_s=-1) == 1
    assert not hidden_files(folder_store)
    folder_store.put("folder/new", b"new")
    assert folder_store.get("folder/new") == b"new"


def test_an_unfinished_file_can_be_neither_listed_nor_named(folder_store):
    name = f".{'0' * 32}.partial"
    folder_store.put("a", b"1")
    (folder_store.root / name).write_bytes(b"half")
    assert [info.key for info in folder_store.list()] == ["a"]
    with pytest.raises(UserError, match="unfinished"):
        folder_store.get(name)


def test_a_failed_write_leaves_nothing(folder_store, tmp_path):
    with pytest.raises(FileNotFoundError):
        folder_store.put("a", tmp_path / "nowhere")
    assert list(folder_store.root.rglob("*")) == []


def test_each_version_has_its_own_etag_even_of_equal_size_in_quick_succession(folder_store):
    etags = []
    for number in range(100):
        folder_store.put("a", number.to_bytes(2))
        etags.append(folder_store.stat("a").etag)
        if number % 3 == 0:
            folder_store.delete("a")
    assert len(set(etags)) == len(etags)


def test_a_version_is_newer_than_one_from_the_future(folder_store):
    folder_store.put("a", b"1")
    future = time.time_ns() + 3600 * 10**9
    os.utime(folder_store.path("a"), ns=(future, future))
    folder_store.put("a", b"2")
    assert folder_store.path("a").stat().st_mtime_ns > future


def test_repairs_that_race_lose_no_update(folder_store):
    folder_store.put("counter", b"0")

    def add(_):
        while True:
            before = folder_store.stat("counter")
            number = int(folder_store.get("counter"))
            if folder_store.replace("counter", str(number + 1).encode(), etag=before.etag):
                return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(40)))
    assert folder_store.get("counter") == b"40"


def test_a_reader_sees_one_version_whole(folder_store):
    bodies = [bytes([number]) * 100_000 for number in (1, 2)]
    folder_store.put("a", bodies[0])
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for body in bodies:
                folder_store.put("a", body)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            for _ in range(200):
                assert folder_store.get("a") in bodies
        finally:
            stop.set()
        writing.result()


def test_one_key_cannot_be_anothers_folder(folder_store):
    folder_store.put("a", b"1")
    folder_store.put("b/c", b"2")
    for write in (folder_store.put, folder_store.create):
        with pytest.raises(UserError, match="cannot hold both"):
            write("a/b", b"x")
        with pytest.raises(UserError, match="cannot hold both"):
            write("b", b"x")
    assert folder_store.stat("b") is None
    assert folder_store.stat("a/b") is None
    with pytest.raises(KeyError):
        folder_store.get("a/b")
    folder_store.delete("b")
    assert [info.key for info in folder_store.list()] == ["a", "b/c"]


def test_links_in_a_data_folder_are_followed_but_not_in_circles(folder_store, tmp_path):
    folder_store.put("photos/a", b"1")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "b").write_bytes(b"22")
    (folder_store.root / "linked").symlink_to(elsewhere)
    (folder_store.root / "photos" / "circle").symlink_to(folder_store.root)
    (folder_store.root / "photos" / "nothing").symlink_to(tmp_path / "nowhere")
    keys = [info.key for info in folder_store.list()]
    assert keys == ["linked/b", "photos/a"]
    assert folder_store.get("linked/b") == b"22"


def test_objects_have_the_usual_permissions(folder_store):
    mask = os.umask(0o027)
    try:
        folder_store.put("a", b"1")
    finally:
        os.umask(mask)
    assert folder_store.path("a").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_the_users_mistake(folder_store):
    folder_store.put("a", b"1")
    folder_store.root.chmod(0o500)
    try:
        with pytest.raises(UserError, match="no permission"):
            folder_store.put("b", b"2")
    finally:
        folder_store.root.chmod(0o700)
