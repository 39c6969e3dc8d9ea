"""A bad network and a bad day of the store: all goes through unharmed, or ends with an error that names the object."""

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from fault.chaos_proxy import Chaos, Events, behind_chaos, served
from fault.in_process import precompute
from unit.pipeline.cache.made_cache import write_cache

from pipeline.loading.loader import CacheLoader, SampleReader
from pipeline.loading.sample_order import Position
from pipeline.object_store.faults import DamagedObjectError, ObjectTooLargeError, UnavailableObjectError
from pipeline.object_store.opening import open_store
from pipeline.object_store.retries import Retries
from pipeline.object_store.s3 import S3Store
from pipeline.object_store.store import ObjectStore

QUICK = Retries(first_wait_s=0.005, longest_wait_s=0.1)
EVERYTHING = {
    "503": 0.10,
    "500": 0.02,
    "reset": 0.03,
    "lose the answer": 0.03,
    "corrupt": 0.04,
    "cut the body": 0.02,
    "flip": 0.04,
    "cut": 0.04,
    "error inside": 0.02,
    "error inside, done": 0.02,
    "delay": 0.02,
}


def tell(line: str) -> None:
    """Figures for whoever runs the tests with `-s`."""
    sys.stdout.write(f"{line}\n")


@pytest.fixture
def direct(seaweedfs: Any, s3_url: str) -> S3Store:
    """A place in the store without the proxy."""
    store = open_store(s3_url)
    assert isinstance(store, S3Store)
    assert list(store.list()) == []  # so that it has its client before the address changes
    return store


def through(direct: S3Store, *, retries: Retries = QUICK) -> S3Store:
    """The same place, behind whatever the environment names now."""
    return S3Store(bucket=direct.bucket, prefix=direct.prefix, retries=retries)


class FirstOnly:
    """The first request for each object and method meets the fault, all others meet none."""

    def __init__(self, words: dict[str, list[str]]) -> None:
        self._words = words
        self._seen: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def __call__(self, method: str, path: str) -> str | None:
        with self._lock:
            self._seen[method, path] += 1
            words = self._words.get(method)
            if not words or self._seen[method, path] > 1:
                return None
            return words[len(self._seen) % len(words)]


def bodies(count: int) -> dict[str, bytes]:
    """Small and large: in one packet and in many."""
    return {f"folder/{number}": os.urandom(1 + 7919 * number % 200_000) for number in range(count)}


def each(work: Callable[[str], object], keys: Iterator[str] | list[str]) -> list[Any]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(work, keys))


def test_every_object_that_is_changed_or_cut_on_its_way_there_is_caught(
    seaweedfs: Any, direct: S3Store, long_form: bool
) -> None:
    wanted = bodies(2000 if long_form else 120)
    with behind_chaos(seaweedfs, FirstOnly({"PUT": ["corrupt", "corrupt", "cut the body"]})) as events:
        store = through(direct)
        assert all(each(lambda key: store.create(key, wanted[key]), list(wanted)))
    assert {info.key: direct.get(info.key) for info in direct.list()} == wanted
    assert len(events.answers_to_changed) == events.done["corrupt"] >= len(wanted) // 2
    refused = [status for status in events.answers_to_changed if status >= 400]
    tell(
        f"writes: {len(refused)} of {events.done['corrupt']} changed bodies refused, "
        f"{events.done['cut the body']} cut, all {len(wanted)} objects as they were sent"
    )
    assert len(refused) == events.done["corrupt"]
    assert events.done["cut the body"] >= len(wanted) // 4


def test_every_object_that_is_changed_or_cut_on_its_way_back_is_caught(
    seaweedfs: Any, direct: S3Store, long_form: bool
) -> None:
    wanted = bodies(2000 if long_form else 120)
    each(lambda key: direct.put(key, wanted[key]), list(wanted))
    with behind_chaos(seaweedfs, FirstOnly({"GET": ["flip", "flip", "cut", "error inside"]})) as events:
        store = through(direct)
        list(store.list())
        found = dict(zip(wanted, each(store.get, list(wanted)), strict=True))
    caught = sum(found[key] == wanted[key] for key in wanted)
    tell(f"reads: {dict(events.done)} done to answers, {caught} of {len(wanted)} objects read as they are")
    assert caught == len(wanted)
    assert sum(events.done.values()) >= len(wanted)


def test_an_object_that_is_always_damaged_is_named(seaweedfs: Any, direct: S3Store) -> None:
    direct.put("folder/a", b"body " * 100)
    for word, calls in {
        "flip": (lambda store: store.get("folder/a"),),
        "corrupt": (
            lambda store: store.create("folder/b", b"x" * 100),
            lambda store: store.put("folder/b", b"x"),
        ),
        "error inside": (
            lambda store: store.get("folder/a"),
            lambda store: store.get_range("folder/a", start=3, length=9),
            lambda store: store.get_range_into("folder/a", start=3, buffers=[memoryview(bytearray(9))]),
            lambda store: store.stat("folder/a"),
        ),
    }.items():
        with behind_chaos(seaweedfs, lambda *_, word=word: word) as events:
            for call in calls:
                before = events.done[word]
                with pytest.raises(
                    DamagedObjectError, match=f"{direct.url}/folder/[ab]: no success in 6 tries"
                ):
                    call(through(direct))
                assert events.done[word] == before + 6
    assert [info.key for info in direct.list()] == ["folder/a"]


@pytest.mark.parametrize("word", ["503", "reset", "cut", "500", "cut the body"])
def test_an_object_that_never_comes_is_named(seaweedfs: Any, direct: S3Store, word: str) -> None:
    direct.put("folder/a", b"body " * 100)
    few = Retries(tries=4, first_wait_s=0.001)
    with behind_chaos(seaweedfs, lambda *_: word):
        calls = [lambda store: store.get("folder/a"), lambda store: store.create("folder/b", b"x" * 50)]
        for call in calls[:1] if word == "cut" else calls[1:] if word == "cut the body" else calls:
            with pytest.raises(
                UnavailableObjectError, match=rf"{direct.url}/folder/[ab]: no success in 4 tries"
            ):
                call(through(direct, retries=few))
    assert [info.key for info in direct.list()] == ["folder/a"]


def test_an_object_larger_than_it_may_be_is_not_read(store: ObjectStore) -> None:
    store.put("a", bytes(1000))
    assert store.get("a", at_most=1000) == bytes(1000)
    with pytest.raises(ObjectTooLargeError, match="a has 1000 bytes, more than the 999"):
        store.get("a", at_most=999)
    with pytest.raises(KeyError):
        store.get("b", at_most=1)


def test_any_call_under_any_fault_is_right_or_a_typed_error(
    seaweedfs: Any, direct: S3Store, long_form: bool
) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(20 if long_form else 1):
        with behind_chaos(seaweedfs, Chaos(seed=seed, shares=EVERYTHING)) as events:
            store = through(direct)

            def life(number: int, store: S3Store = store, seed: int = seed) -> None:
                key, body = f"{seed}/{number}", os.urandom(20_000)
                other = os.urandom(100)
                try:
                    assert store.create(key, body)
                    assert not store.create(key, other)
                    assert store.get(key) == body
                    info = store.stat(key)
                    assert info is not None
                    assert info.size == len(body)
                    assert store.replace(key, other, etag=info.etag)
                    assert not store.replace(key, body, etag=info.etag)
                    assert store.get(key) == other
                    store.delete(key)
                    assert store.stat(key) is None
                    outcomes["right"] += 1
                except (DamagedObjectError, UnavailableObjectError) as error:
                    named = f"{store.url}/{key}" in str(error)
                    outcomes[type(error).__name__ if named else f"without a name: {error}"] += 1

            each(life, list(range(40)))
        outcomes.update({f"proxy: {word}": count for word, count in events.done.items()})
    tell(f"{outcomes}")
    assert not [outcome for outcome in outcomes if outcome.startswith("without a name")]
    assert outcomes["right"] >= 0.95 * 40 * (20 if long_form else 1)


def test_a_store_that_goes_away_for_a_while_costs_time_alone(
    seaweedfs: Any, direct: S3Store, long_form: bool
) -> None:
    away_s = 30.0 if long_form else 4.0
    chaos = Chaos(seed=0, shares={})
    with behind_chaos(seaweedfs, chaos) as events:
        store = through(direct, retries=Retries())  # as everyone has them
        store.put("before", b"1")
        chaos.go_away(away_s)
        begun = time.monotonic()
        each(lambda key: store.create(key, key.encode()), ["a", "b", "c"])
        assert store.get("before") == b"1"
        assert time.monotonic() - begun >= away_s
        assert events.done["reset"] >= 3
    assert {info.key: direct.get(info.key) for info in direct.list()} == {
        "a": b"a",
        "b": b"b",
        "before": b"1",
        "c": b"c",
    }


def test_a_worker_that_starts_while_the_store_is_away_waits_for_it(
    seaweedfs: Any, direct: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its driver has reached the store: that nobody answers now is not the user's mistake."""
    with served(seaweedfs, Chaos(seed=0, shares={})) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        store = S3Store(bucket=direct.bucket, prefix=direct.prefix, retries=Retries(tries=3), reached=True)
    with pytest.raises(UnavailableObjectError, match="in 3 tries"):
        store.get("a")


def content(store: ObjectStore) -> dict[str, str]:
    """All objects as digests; the store's own URL taken out of the lists of shards."""
    found = {info.key: store.get(info.key).replace(store.url.encode(), b"URL") for info in store.list()}
    return {key: sha256(body).hexdigest() for key, body in found.items() if not key.startswith("requests/")}


def test_a_whole_precompute_in_chaos_is_the_clean_one_or_ends_with_the_objects_name(
    seaweedfs: Any,
    direct: S3Store,
    tmp_path: Path,
    small_recipe: Callable[..., Path],
    long_form: bool,
) -> None:
    recipe = small_recipe()
    clean_store = open_store(tmp_path / "clean")
    precompute(recipe, clean_store)
    clean = content(clean_store)
    shards = sum("/shards/" in key for key in clean)
    assert shards >= 4
    outcomes: Counter[str] = Counter()
    done: Counter[str] = Counter()
    for seed in range(10 if long_form else 2):
        # By the request and its count: a bucket folder of its own makes each run another sequence of faults.
        place = S3Store(bucket=direct.bucket, prefix=f"{direct.prefix}/{seed}", retries=QUICK)
        chaos = Chaos(seed=seed, shares=EVERYTHING)
        with behind_chaos(seaweedfs, chaos) as events:
            if seed % 2:
                threading.Timer(0.5, chaos.go_away, [30.0 if long_form else 3.0]).start()
            try:
                precompute(recipe, through(place, retries=Retries()))
                outcomes["completed"] += 1
            except (DamagedObjectError, UnavailableObjectError) as error:
                named = f"{place.url}/" in str(error)
                outcomes[type(error).__name__ if named else f"without a name: {error}"] += 1
                precompute(recipe, place)
        done += events.done
        assert content(place) == clean
    tell(f"precompute of {shards} shards in chaos: {dict(outcomes)}; {dict(done)}")
    assert not [outcome for outcome in outcomes if outcome.startswith("without a name")]
    assert outcomes["completed"] >= 1
    assert done["503"]
    assert done["corrupt"] + done["flip"] + done["cut"]


def test_the_loader_reads_through_chaos(
    seaweedfs: Any, direct: S3Store, tmp_path: Path, long_form: bool
) -> None:
    """Ranges are checked by xxh3, and read once more where that does not fit."""
    manifest = write_cache(direct, tmp_path, samples=64, per_shard=16)
    shares = {"503": 0.1, "flip": 0.2, "cut": 0.1, "reset": 0.03, "error inside": 0.05, "delay": 0.02}

    def batches(store: ObjectStore) -> list[bytes]:
        loader = CacheLoader(reader=SampleReader(store=store, manifest=manifest), batch_size=4, window=1)
        return [
            b"".join(value.numpy().tobytes() for value in (batch.latents, *batch.features.values()))
            for epoch in range(20 if long_form else 2)
            for batch in loader.epoch(Position(epoch=epoch, batch=0))
        ]

    clean = batches(direct)
    done = Events().done
    for seed in range(4 if long_form else 1):
        with behind_chaos(seaweedfs, Chaos(seed=seed, shares=shares, every_other=True)) as events:
            assert batches(through(direct)) == clean
        done += events.done
    tell(f"loader in chaos: {len(clean)} batches as without; {dict(done)}")
    assert done["flip"]
    assert done["cut"]
