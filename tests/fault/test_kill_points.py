"""A kill at every step of the commit protocol: afterwards whole, byte for byte what a clean run leaves."""

import hashlib
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault.killing_store import WHENS, Fate, Turns
from unit.pipeline.cache.made_cache import SPEC, commit, make_entries, manifest_of

from pipeline.cache import layout
from pipeline.cache.manifest import answer_request, find_manifest
from pipeline.cache.receipt import Receipt, read_receipt
from pipeline.loading.loader import SampleReader
from pipeline.object_store.opening import open_store
from pipeline.object_store.s3 import S3Store
from pipeline.object_store.store import ObjectStore

SHARDS = 4
REQUEST = "a" * 32
ENTRIES = make_entries(2 * SHARDS)
WRITERS = 3


def tell(line: str) -> None:
    """Figures for whoever runs the tests with `-s`."""
    sys.stdout.write(f"{line}\n")


def shard_entries(number: int) -> list[Any]:
    return ENTRIES[2 * number : 2 * number + 2]


def shard_id(number: int) -> str:
    return hashlib.sha256("".join(entry.key for entry in shard_entries(number)).encode()).hexdigest()[:32]


def writer(folder: Path, order: list[int]) -> Callable[[ObjectStore], None]:
    """One driver: commits what is missing, in its own order, then writes the manifest and answers the request."""
    folder.mkdir(parents=True, exist_ok=True)

    def write(store: ObjectStore) -> None:
        receipts: dict[int, Receipt] = {}
        for number in order:
            standing = read_receipt(store, cache_key=SPEC.key, shard_id=shard_id(number))
            receipts[number] = standing or commit(store, folder, shard_entries(number))
        answer_request(store, REQUEST, manifest_of(store, *(receipts[number] for number in range(SHARDS))))

    return write


def store_below(store: ObjectStore, name: str) -> ObjectStore:
    """A store in another's folder, over the same client: to make one takes longer than a whole run."""
    below = open_store(f"{store.url}/{name}")
    if isinstance(below, S3Store) and isinstance(store, S3Store):
        object.__setattr__(below, "_source", store._source)
    return below


def content(store: ObjectStore) -> dict[str, str]:
    """Every object, as digests; the store's own URL, which the list of shards holds, taken out."""
    bodies = {info.key: store.get(info.key) for info in store.list()}
    return {
        key: hashlib.sha256(body.replace(store.url.encode(), b"URL")).hexdigest()
        for key, body in bodies.items()
    }


def assert_whole(store: ObjectStore, clean: dict[str, str]) -> None:
    """Nothing lost, nothing twice, nothing torn."""
    assert content(store) == clean
    assert len([key for key in clean if key.startswith(layout.receipt_prefix(SPEC.key))]) == SHARDS
    assert len([key for key in clean if key.startswith(f"{SPEC.key}/shards/")]) == SHARDS


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an undisturbed run of one writer leaves."""
    store = open_store(tmp_path_factory.mktemp("clean") / "store")
    writer(tmp_path_factory.mktemp("clean-writer"), list(range(SHARDS)))(store)
    return content(store)


def strike(store: ObjectStore, folder: Path, clean: dict[str, str], *, seed: int) -> str:
    """One seeded kill among interleaved writers, and a run after it. Where it struck; empty where all was over."""
    chance = random.Random(seed)  # noqa: S311 - no secret hangs on it
    fate = Fate(operation=chance.randrange(60), when=chance.choice(WHENS), everyone=chance.random() < 0.6)
    turns = Turns(seed=seed, fate=fate)
    orders = [chance.sample(range(SHARDS), SHARDS) for _ in range(WRITERS)]
    writers = [writer(folder / str(number), order) for number, order in enumerate(orders)]
    assert turns.run(store, writers) == []
    visible = content(store)
    assert visible.items() <= clean.items(), "something torn is visible"
    for number in range(SHARDS):  # a receipt vouches for a shard that is there
        receipt = read_receipt(store, cache_key=SPEC.key, shard_id=shard_id(number))
        assert receipt is None or receipt.object_key in visible
    manifest = find_manifest(store, REQUEST)
    if manifest is not None:
        assert len(SampleReader(store=store, manifest=manifest).read_run(np.array([0, 1]))) == 2
    writer(folder / "again", list(range(SHARDS)))(store)
    assert_whole(store, clean)
    return turns.killed_at


def kind(killed_at: str) -> str:
    """`after create …/receipts/….json` -> `after create receipts`."""
    when, operation, key = killed_at.split(" ", 2)
    folder, _, _ = key.removeprefix(f"{SPEC.key}/").partition("/")
    return f"{when} {operation} {'spec' if folder.endswith('.json') else folder}"


def test_kills_at_every_step_on_a_folder(
    tmp_path: Path, clean: dict[str, str], long_form: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A killed process loses nothing that it has written, only a machine does: no need to wait for the disk here.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    struck: Counter[str] = Counter()
    halves = 0
    for seed in range(2000 if long_form else 350):
        store = open_store(tmp_path / str(seed) / "store")
        where = strike(store, tmp_path / str(seed), clean, seed=seed)
        if where:
            struck[kind(where)] += 1
            half = where.startswith(("middle create", "middle put"))
            halves += half
            assert store.discard_unfinished(older_than_s=-1) == half
    tell(
        f"{sum(struck.values())} kills on a folder, {halves} in the middle of a body: {dict(sorted(struck.items()))}"
    )
    assert sum(struck.values()) >= 200
    assert halves > 20
    steps = {
        f"{when} {step}" for when in WHENS for step in ("create shards", "create receipts", "put requests")
    }
    assert steps <= set(struck)


def test_kills_at_every_step_on_s3(
    s3_url: str, tmp_path: Path, clean: dict[str, str], long_form: bool
) -> None:
    struck: Counter[str] = Counter()
    first = open_store(s3_url)
    for seed in range(1000, 1300 if long_form else 1030):
        store = store_below(first, str(seed))
        where = strike(store, tmp_path / str(seed), clean, seed=seed)
        struck[kind(where) if where else "over before"] += 1
    tell(f"{sum(struck.values()) - struck['over before']} kills on S3: {dict(sorted(struck.items()))}")
    assert {key.split()[0] for key in struck} >= set(WHENS)


def test_without_a_kill_writers_that_take_turns_agree(tmp_path: Path, clean: dict[str, str]) -> None:
    for seed in range(10):
        store = open_store(tmp_path / str(seed) / "store")
        turns = Turns(seed=seed)
        orders = [random.Random(f"{seed} {n}").sample(range(SHARDS), SHARDS) for n in range(WRITERS)]  # noqa: S311 - no secret
        assert turns.run(store, [writer(tmp_path / f"{n}", order) for n, order in enumerate(orders)]) == []
        assert turns.operations > 3 * SHARDS
        assert_whole(store, clean)


def _write_for_ever(url: str, folder: Path, seed: int, begun: Any) -> None:
    """A worker's life, over and over on stores of its own, until it is killed."""
    os.setpgid(0, 0)
    turn, first = 0, open_store(url)
    while True:
        store = store_below(first, str(turn))
        if turn == 1:
            begun.set()  # all is imported and connected: what follows is the protocol alone
        writer(folder, random.Random(f"{seed} {turn}").sample(range(SHARDS), SHARDS))(store)  # noqa: S311 - no secret
        turn += 1


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_real_kills_of_a_writing_process(
    place: str, tmp_path: Path, request: pytest.FixtureRequest, clean: dict[str, str], long_form: bool
) -> None:
    """SIGKILL at a seeded random moment; what it left is then completed, and is whole."""
    root = str(tmp_path / "stores") if place == "folder" else request.getfixturevalue("s3_url")
    context = multiprocessing.get_context("spawn")
    unfinished = stores = 0
    kills = 20 if long_form else 3
    for number in range(kills):
        chance = random.Random(number)  # noqa: S311 - no secret hangs on it
        url, folder, begun = f"{root}/{number}", tmp_path / f"writer-{number}", context.Event()
        process = context.Process(target=_write_for_ever, args=(url, folder, number, begun))
        process.start()
        try:
            assert begun.wait(120)
            time.sleep(chance.uniform(0, 0.5))
        finally:
            process.kill()
            process.join()
        assert process.exitcode == -signal.SIGKILL
        turns = {info.key.split("/")[0] for info in open_store(url).list()}
        for turn in sorted(turns, key=int)[-2:]:
            store = open_store(f"{url}/{turn}")
            visible = content(store)
            assert visible.items() <= clean.items(), "something torn is visible"
            unfinished += visible != clean
            stores += 1
            writer(tmp_path / "again", list(range(SHARDS)))(store)
            assert_whole(store, clean)
    tell(
        f"{kills} SIGKILLs of a writer on {place}: {unfinished} of {stores} caches were unfinished, all were completed"
    )
    assert unfinished >= kills // 3


def test_two_drivers_with_eight_workers_each_leave_one_receipt_a_shard(
    s3_url: str, tmp_path: Path, clean: dict[str, str]
) -> None:
    """Sixteen writers at once on one cache, without turns: real threads, real conflicts."""
    from concurrent.futures import ThreadPoolExecutor

    store = open_store(s3_url)
    wins: Counter[str] = Counter()

    class Counting:
        """Counts who really created an object."""

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def create(self, key: str, body: bytes | Path, *, sha256: str | None = None) -> bool:
            won = store.create(key, body, sha256=sha256)
            wins[key] += won
            return won

    orders = [random.Random(number).sample(range(SHARDS), SHARDS) for number in range(16)]  # noqa: S311 - no secret
    with ThreadPoolExecutor(16) as pool:
        done = [
            pool.submit(writer(tmp_path / str(number), order), Counting())
            for number, order in enumerate(orders)
        ]
        assert [future.result() for future in done] == [None] * 16
    assert_whole(store, clean)
    assert set(wins.values()) == {1}, "an object was created twice"
