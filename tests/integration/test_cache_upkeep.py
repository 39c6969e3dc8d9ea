"""`ldznet cache` on a cache of two related specifications, in a folder and on a real S3 server."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from unit.pipeline.cache.made_cache import make_entries
from unit.pipeline.cache.made_family import COLUMN, LARGE, OTHER, SMALL, Family, commit, write_family

from jobs import cli
from pipeline.cache import layout
from pipeline.cache.lease import lease
from pipeline.object_store.store import ObjectStore


@pytest.fixture
def made(store: ObjectStore, tmp_path: Path) -> Family:
    return write_family(store, tmp_path)


@pytest.fixture
def cache(store: ObjectStore, capfd: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Runs a command on the store; gives the lines of its result."""

    def run(command: str, *arguments: str, code: int = 0) -> list[str]:
        capfd.readouterr()
        assert cli.main(["cache", command, store.url, *arguments]) == code
        shown = capfd.readouterr()
        return (shown.err if code == 2 else shown.out).splitlines()

    return run


def keys(store: ObjectStore) -> set[str]:
    return {info.key for info in store.list()}


def test_list(store: ObjectStore, made: Family, cache: Callable[..., list[str]]) -> None:
    header, *lines, total = cache("list")
    assert " ".join(header.split()) == "KEY SETS SAMPLES SHARDS SIZE STORED BLOCKS VIEW AGE"
    of = {line.split()[0]: line for line in lines}
    assert set(of) == {spec.key[:12] for spec in (SMALL, LARGE, COLUMN, OTHER)}
    assert "made/train" in of[SMALL.key[:12]]
    assert "fp16    6,8     squash 384" in of[SMALL.key[:12]]
    assert "columns" in of[COLUMN.key[:12]]
    assert "2 shards that others name" in of[COLUMN.key[:12]]
    assert "made/val" in of[OTHER.key[:12]]
    assert "int8" in of[OTHER.key[:12]]
    assert store.url in total
    told = json.loads("\n".join(cache("list", "--json")))
    assert told["size"] == sum(info.size for info in store.list() if info.key.endswith(".tar"))
    assert {one["cache_key"]: one["samples"] for one in told["specs"]}[LARGE.key] == 9


def test_show(made: Family, cache: Callable[..., list[str]]) -> None:
    text = "\n".join(cache("show", LARGE.key[:10]))
    assert f"specification {LARGE.key}" in text
    assert "features.blocks: 6, 8, 9" in text
    assert f"manifest {made.large.manifest_id}: made/train" in text
    assert f"from shards under {SMALL.key[:12]}: 2 shards" in text
    assert f"from columns of further blocks under {COLUMN.key[:12]}: 2 shards" in text
    assert "from its own: 1 shards" in text
    assert "2 filtered: outside the view" in text
    assert "computed on cpu the first with torch 2" in text
    assert "answers 1 requests, MLflow run" in text
    differences = cache("show", SMALL.key[:10], LARGE.key[:10])
    assert "  features.blocks: 6, 8 | 6, 8, 9" in differences
    assert differences[-1].startswith("  shared: 2 shards, ")
    assert json.loads("\n".join(cache("show", SMALL.key, "--json")))["cache_key"] == SMALL.key


def test_keys_that_fit_none_or_several(made: Family, cache: Callable[..., list[str]]) -> None:
    (line,) = cache("show", "zz", code=2)
    assert (
        f"has a key that starts with 'zz': there are {', '.join(sorted(k[:12] for k in all_keys()))}" in line
    )
    for words in (
        ("show", ""),
        ("collect", "--yes", "--drop", "/"),
        ("collect", "--yes", "--drop", f"/{SMALL.key}"),
    ):
        (line,) = cache(*words, code=2)
        assert f"Give the first digits of its key: {min(k[:12] for k in all_keys())}" in line
    (line,) = cache("collect", "--yes", "--drop", f"{SMALL.key[:12]}/", code=2)
    assert "names no manifest behind the slash" in line
    (line,) = cache("collect", "--drop", f"{SMALL.key[:12]}/zz", code=2)
    assert f"none starts with 'zz': there are {made.small.manifest_id}" in line


def all_keys() -> list[str]:
    return [spec.key for spec in (SMALL, LARGE, COLUMN, OTHER)]


def test_verify(store: ObjectStore, made: Family, cache: Callable[..., list[str]]) -> None:
    (line,) = cache("verify")
    assert line.startswith("7 of 7 shards (")
    assert line.endswith("are as they were written")
    store.delete(made.fresh.object_key)
    store.put(made.columns[0].object_key, b"cut")
    bad = cache("verify", "--at-once", "2", code=1)
    assert any(line.startswith(f"gone: {made.fresh.object_key} ") for line in bad)
    assert any(line.startswith(f"cut: {made.columns[0].object_key} ") for line in bad)
    assert "`ldznet precompute RECIPE --repair`" in bad[-1]
    assert len(bad) == 4
    assert len(cache("verify", SMALL.key[:12])) == 1
    told = json.loads("\n".join(cache("verify", "--json", code=1)))
    assert {fault["what"] for fault in told["faults"]} == {"gone", "cut"}


def test_collect(store: ObjectStore, made: Family, cache: Callable[..., list[str]], tmp_path: Path) -> None:
    before = keys(store)
    thrown = commit(store, tmp_path, make_entries(4))
    assert cache("collect")[-1].startswith("there is nothing to collect")  # it is young
    shown = cache("collect", "--older-than", "0s")
    assert shown[-1] == "nothing was removed: add --yes to remove it"
    assert any("1 x shard (no manifest names it)" in line for line in shown)
    assert thrown.object_key in keys(store)
    with lease(store, [LARGE]):
        told = cache("collect", "--older-than", "0s", "--yes")
        assert f"{SMALL.key[:12]} stays as it is: a job is at work on it" in "\n".join(told)
    assert thrown.object_key in keys(store)
    assert cache("collect", "--older-than", "0s", "--yes")[-1].startswith("removed 2 objects, ")
    assert keys(store) == before
    cache("verify")


def test_drop(store: ObjectStore, made: Family, cache: Callable[..., list[str]]) -> None:
    shown = cache("collect", "--drop", SMALL.key[:12])
    lent = f"2 shards of what is dropped stay: other manifests name them ({LARGE.key[:12]})"
    assert lent in shown
    cache("collect", "--drop", SMALL.key[:12], "--yes")
    assert layout.manifest_key(SMALL.key, made.small.manifest_id) not in keys(store)
    assert made.receipts[2].object_key not in keys(store)
    cache("verify")


@pytest.mark.parametrize("answer", ["yes", "y"])
def test_a_person_is_asked(answer: str, tmp_path: Path) -> None:
    from pipeline.object_store.opening import open_store

    store = open_store(tmp_path / "cache")
    receipt = commit(store, tmp_path, make_entries(2))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "jobs.cache", "collect", str(tmp_path / "cache"), "--older-than", "0s"]
    done = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    shown = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert done.wait(120) == 0
    assert b"Remove it? Type yes: " in shown
    assert (receipt.object_key in keys(store)) == (answer != "yes")
