"""A collector against jobs that start, at every seeded interleaving of their requests: no job ever loses a shard."""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from unit.pipeline.cache.made_cache import make_entries
from unit.pipeline.cache.made_family import LARGE, SMALL, commit, name

from ldznet.errors import UserError
from pipeline.cache import layout, lease
from pipeline.cache.collection import collect, preview
from pipeline.cache.committed_shard import CommittedShard
from pipeline.cache.garbage import Findings
from pipeline.cache.receipt import Receipt, read_receipts
from pipeline.cache.spec import CacheSpec
from pipeline.cache.verification import verify
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore

SEEDS = range(30)
ENTRIES = make_entries(4)


@dataclass
class Turns:
    """Lets one request through at a time: the next one is drawn among all who wait, once everybody waits or is done."""

    random: random.Random
    actors: set[str]
    pace: dict[str, int]  # how often an actor is drawn
    waiting: set[str] = field(default_factory=set)
    chosen: str | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)
    order: list[str] = field(default_factory=list)

    def take(self, actor: str) -> None:
        with self.changed:
            self.waiting.add(actor)
            self._choose()
            assert self.changed.wait_for(lambda: self.chosen == actor, timeout=60)
            self.waiting.remove(actor)
            self.order.append(actor)

    def give_back(self) -> None:
        with self.changed:
            self.chosen = None
            self._choose()

    def leave(self, actor: str) -> None:
        with self.changed:
            self.actors.remove(actor)
            self._choose()

    def _choose(self) -> None:
        if self.chosen is None and self.waiting and self.waiting == self.actors:
            waiting = sorted(self.waiting)
            (self.chosen,) = self.random.choices(waiting, [self.pace[actor] for actor in waiting])
            self.changed.notify_all()


@dataclass(frozen=True)
class TurnStore:
    """A store of one actor, each of whose requests waits for its turn. A listing is one request a page of two."""

    inner: ObjectStore
    turns: Turns
    actor: str

    @property
    def url(self) -> str:
        return self.inner.url

    def __getattr__(self, attribute: str) -> Any:
        call = getattr(self.inner, attribute)

        def in_turn(*arguments: Any, **named: Any) -> Any:
            self.turns.take(self.actor)
            try:
                return call(*arguments, **named)
            finally:
                self.turns.give_back()

        return in_turn

    def list(self, prefix: str = "") -> Any:
        """Page by page, each as the store is when it is asked for: what is written before it begins is in it."""
        after = ""
        while True:
            self.turns.take(self.actor)
            try:
                page = [info for info in self.inner.list(prefix) if info.key > after][:2]
            finally:
                self.turns.give_back()
            if not page:
                return
            yield from page
            after = page[-1].key


Actor = Callable[[Any], None]


def play(store: ObjectStore, actors: dict[str, Actor], seed: int) -> Turns:
    """Run all actors to their ends, one request at a time."""
    generator = random.Random(seed)  # noqa: S311 - an order to be repeated
    pace = {actor: generator.choice((1, 5, 25)) for actor in actors}
    turns = Turns(generator, set(actors), pace)
    failures: list[BaseException] = []

    def run(actor: str) -> None:
        try:
            actors[actor](TurnStore(store, turns, actor))
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)
        finally:
            turns.leave(actor)

    threads = [threading.Thread(target=run, args=(actor,), daemon=True) for actor in actors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    if failures:
        raise failures[0]
    return turns


def job(folder: Path, spec: CacheSpec, *, leased: bool) -> Actor:
    """A precompute: takes over what has a receipt, commits the rest, writes its manifest."""
    folder.mkdir(exist_ok=True)

    def work(store: Any) -> None:
        ids = {
            info.key.rpartition("/")[2].removesuffix(".json") for info in store.list(f"{SMALL.key}/receipts/")
        }
        found = [
            one for one in read_receipts(store, cache_key=SMALL.key, shard_ids=sorted(ids), at_once=1) if one
        ]
        held = {sample.key for receipt in found for sample in receipt.samples}
        fresh: list[Receipt] = [
            commit(store, folder, [entry], spec=spec) for entry in ENTRIES[:3] if entry.key not in held
        ]
        shards = [CommittedShard.from_receipts(receipt) for receipt in (*found, *fresh)]
        name(store, *shards, spec=spec, request="a" if spec is SMALL else "b")

    def run(store: Any) -> None:
        if not leased:
            work(store)
            return
        with lease.lease(store, [spec], every_s=1e6, poll_s=0.0) as held:
            work(store)
            held.ensure()

    return run


def collector(shown: Findings, outcomes: list[int]) -> Actor:
    def run(store: Any) -> None:
        try:
            outcomes.append(len(collect(store, shown, older_than_s=-60, at_once=1).removed))
        except UserError as error:  # another collector was quicker
            assert "another `ldznet cache collect`" in str(error)  # noqa: PT017

    return run


def given_up(store: ObjectStore, folder: Path) -> None:
    """A run that was killed: two committed shards, and a tar whose receipt it did not come to."""
    for entry in ENTRIES[:3]:
        receipt = commit(store, folder, [entry])
    store.delete(layout.receipt_key(SMALL.key, receipt.shard_id))
    store.create(layout.spec_key(SMALL.key), SMALL.canonical().encode())


def sound(store: ObjectStore) -> bool:
    return verify(store, at_once=1).faults == ()


@pytest.mark.parametrize("spec", [SMALL, LARGE], ids=["the same specification", "one of the family"])
def test_a_starting_job_never_loses_a_shard(spec: CacheSpec, tmp_path: Path) -> None:
    removed, orders = [], set()
    for seed in SEEDS:
        store = open_store(tmp_path / f"store-{seed}")
        given_up(store, tmp_path)
        outcomes: list[int] = []
        shown = preview(store, older_than_s=-60)
        actors = {
            "job": job(tmp_path / "job", spec, leased=True),
            "other job": job(tmp_path / "other", spec, leased=True),
            "collector": collector(shown, outcomes),
            "other collector": collector(shown, outcomes),
        }
        orders.add(tuple(play(store, actors, seed).order))
        assert sound(store), f"seed {seed}"
        assert not [info.key for info in store.list("leases/")], f"seed {seed}"
        removed.append(sum(outcomes))
    assert len(orders) == len(SEEDS)
    assert any(removed), "no interleaving let the collector remove anything"
    assert not all(removed), "no interleaving let a job come first"


def test_without_leases_a_job_does_lose_shards(tmp_path: Path) -> None:
    """That the interleavings above would find it."""
    broken = 0
    for seed in SEEDS:
        store = open_store(tmp_path / f"store-{seed}")
        given_up(store, tmp_path)
        shown = preview(store, older_than_s=-60)
        actors = {"job": job(tmp_path / "job", SMALL, leased=False), "collector": collector(shown, [])}
        try:
            play(store, actors, seed)
        except (OSError, KeyError):  # the tar that it was about to adopt has gone
            broken += 1
        else:
            broken += not sound(store)
    assert broken > 0
