"""What the driver of a precompute makes of its plan and keeps of what was committed: some dozen bytes a sample."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from pipeline.cache.committed_shard import CommittedShard
from pipeline.cache.receipt import Environment, LeftOut
from pipeline.precompute.increment import PlannedWork
from pipeline.precompute.sets import ListedSet, ShardName, refuse_too_many_failures
from pipeline.precompute.worker import SetOfShards, ShardTask
from pipeline.recipe import Recipe

SetWork = Sequence[tuple[ListedSet, PlannedWork]]


def tasks_of(work: SetWork, *, repair: bool = False) -> Iterator[ShardTask]:
    """Planned work as it is sent to workers, one by one."""
    common: dict[
        tuple[str, int], SetOfShards
    ] = {}  # which hold the specifications: no other has an id of theirs
    for listed, one in work:
        name = listed.set_name, id(one.spec)
        of = common.get(name)
        if of is None:
            of = common[name] = SetOfShards(set_name=listed.set_name, spec=one.spec, data=listed.data)
        yield ShardTask(of=of, plan=one.shard.pack(listed.table), source=one.source, repair=repair)


def collect(
    recipe: Recipe, sets: Iterable[ListedSet], committed: Iterable[tuple[ShardTask, CommittedShard]]
) -> dict[ShardName, CommittedShard]:
    """What was committed, by name.

    Raises:
        UserError: more samples are faulty than the recipe allows: then the run ends, and not after all work is done.
    """
    failures = _Failures(recipe, sets)
    environments: dict[tuple[str, ...], Environment] = {}
    shards: dict[ShardName, CommittedShard] = {}
    for task, shard in committed:
        # A hundred thousand shards were computed in a handful of environments.
        environment = environments.setdefault(_facts(shard.environment), shard.environment)
        shards[task.name] = replace(shard, environment=environment)
        failures.add(task.of.set_name, shard.left_out)
    return shards


def _facts(environment: Environment) -> tuple[str, ...]:
    versions = (f"{name}={version}" for name, version in environment.versions.items())
    return environment.device, environment.processor, *versions


class _Failures:
    """Faulty samples so far."""

    def __init__(self, recipe: Recipe, sets: Iterable[ListedSet]) -> None:
        self._recipe = recipe
        self._sets = {listed.set_name: listed for listed in sets}
        self._failed: dict[str, list[LeftOut]] = {name: [] for name in self._sets}

    def add(self, set_name: str, left_out: Iterable[LeftOut]) -> None:
        failed, before = self._failed[set_name], len(self._failed[set_name])
        failed += (member for member in left_out if member.why == "failed")
        allowed = self._recipe.cache.max_failed_share * self._sets[set_name].members
        if before < len(failed) and len(failed) > allowed:
            refuse_too_many_failures(self._recipe, self._sets[set_name], failed)
