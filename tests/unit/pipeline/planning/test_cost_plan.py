"""What a plan is reckoned from: counts, the loader's requests, overlapping stages, payback and prices."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.loading.sample_order import contiguous_runs, epoch_order, rank_share
from pipeline.object_store.opening import open_store
from pipeline.planning.calibration import HostTimes, sample_members
from pipeline.planning.calibration_run import Machine
from pipeline.planning.config import PriceConfig
from pipeline.planning.cost_plan import make_cost_plan
from pipeline.planning.cost_table import bytes_text, cost_table, duration
from pipeline.planning.money import Spending, money
from pipeline.planning.pass_times import PassTimes
from pipeline.planning.set_work import set_work
from pipeline.planning.training_cost import epoch_gets, payback
from pipeline.planning.worker_time import StageSeconds, worker_time
from pipeline.planning.workload import Workload, count_work
from pipeline.precompute.preparation import prepare
from pipeline.precompute.sets import SetPlan, plan_sets
from pipeline.recipe import CacheConfig, FeaturesConfig
from pipeline.recipe_file import load_recipe

MACHINE = Machine(device="cpu", processor="a processor", threads=1, cores=4)
GPU = replace(MACHINE, device="cuda")
HOST = HostTimes(
    decode_s=0.01, pack_s=0.02, sample_bytes=1e6, picture_bytes=0, members=9, kept_share=1, view_share=1
)
PASSES = PassTimes(vae_s=0.4, text_s=0.16, unet_s=0.8, whole_unet_s=1.6, scaled=())


@pytest.fixture
def plans(small_recipe: Callable[..., Path]) -> Iterator[Callable[..., dict[str, SetPlan]]]:
    """The sets' plans of the small recipe with other sections."""
    made: list[SetPlan] = []

    def plan(**sections: object) -> dict[str, SetPlan]:
        recipe = load_recipe(small_recipe(**sections))
        made.extend(plan_sets(recipe, store=open_store(recipe.cache.url)))
        return {one.set_name: one for one in made}

    yield plan
    for one in made:
        one.table.close()


def one_set(**policy: object) -> dict[str, object]:
    view = {"policy": policy.pop("view", "squash"), "size": 64}
    return {
        "sets": {"train": {"split": "train", "view": view, **policy}},
        "validate_on": None,
        "evaluate": {},
    }


def load_of(plan: SetPlan, **named: int) -> Workload:
    (load,) = count_work(plan, list(plan.increment.work), **named)
    return load


@pytest.mark.parametrize(
    ("policy", "views", "prompts"),
    [
        ({"view": "squash", "draws": 2}, 12 * 2, 3),  # draws lie in shards of their own
        ({"view": "shared", "draws": 2}, 12 * 2, 3),
        ({"view": "published", "draws": 2}, 36 * 2, 3),
        ({"view": "squash", "prompts": ["a {}.", "the {}!"], "draws": 8}, 12 * 8, 6),
    ],
)
def test_shared_work_is_counted_once_a_shard(
    plans: Callable[..., dict[str, SetPlan]], policy: dict[str, Any], views: int, prompts: int
) -> None:
    load = load_of(plans(**one_set(**policy), cache={"url": "nowhere", "shard_mebibytes": 64})["train"])
    draws = policy["draws"]
    assert (load.shards, load.members, load.photos) == (draws, 36 * draws, 12 * draws)
    assert (load.views(1.0), load.prompts) == (views, prompts * draws)
    assert load.objects == 12 * draws + load.members  # a mask is an object of its own
    assert load.exact
    passes = load.passes(view_share=0.5, kept_share=1)
    assert passes.vae == draws * -(-views // draws // 2 // 4)
    assert (passes.text, passes.unet) == (draws, draws * -(-36 // 8))


def test_prompts_are_those_that_the_shard_draws(
    plans: Callable[..., dict[str, SetPlan]], small_data: Path
) -> None:
    plan = plans(**one_set(prompts="published"), cache={"url": "nowhere", "shard_mebibytes": 64})["train"]
    (shard,) = plan.increment.work
    prepared, left_out = prepare(plan.spec, shard.shard.plan(plan.table).members, open_store(small_data).get)
    assert not left_out
    assert load_of(plan).prompts == len({one.prompt for one in prepared})


def test_a_part_of_the_shards_speaks_for_all(plans: Callable[..., dict[str, SetPlan]]) -> None:
    plan = plans()["train"]
    whole, part = load_of(plan), load_of(plan, most=40)
    assert part.shards == whole.shards > len(part.counted) > 0
    assert part.members == whole.members
    assert (whole.exact, part.exact) == (True, False)
    assert part.photos == pytest.approx(whole.photos, rel=0.25)
    assert part.passes(view_share=1, kept_share=1).unet == pytest.approx(
        whole.passes(view_share=1, kept_share=1).unet, rel=0.25
    )


def test_members_for_calibration_are_whole_photos(plans: Callable[..., dict[str, SetPlan]]) -> None:
    table = plans()["train"].table
    chosen = sample_members(table, most=30)
    photos = {member.image_digest for member in chosen}
    assert 30 <= len(chosen) < len(table)
    every = table.members(range(len(table)))
    assert len(chosen) == sum(member.image_digest in photos for member in every)
    assert len(sample_members(table, most=1000)) == len(table)


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    window=st.integers(1, 9),
    ranks=st.sampled_from([1, 2, 4]),
)
def test_requests_of_an_epoch_are_the_loaders(sizes: list[int], window: int, ranks: int) -> None:
    batch = 8
    train = SimpleNamespace(seed=3, batch_size=batch, rank_batch=batch // ranks)
    recipe: Any = SimpleNamespace(train=train, loader=SimpleNamespace(window=window))
    order = epoch_order(np.array(sizes), seed=3, epoch=0, window=window)
    shards = np.repeat(np.arange(len(sizes)), sizes)
    runs = [
        run
        for number in range(len(order) // batch)
        for rank in range(ranks)
        for run in contiguous_runs(
            rank_share(order, batch=number, batch_size=batch, rank=rank, ranks=ranks), shards
        )
    ]
    assert epoch_gets(sizes, objects=[1] * len(sizes), recipe=recipe) == len(runs)
    columns = [1 + number % 2 for number in range(len(sizes))]
    weighed = sum(columns[shards[run[0]]] for run in runs)
    assert epoch_gets(sizes, objects=columns, recipe=recipe) == weighed


def test_requests_of_a_long_epoch_are_those_of_a_part() -> None:
    train = SimpleNamespace(seed=0, batch_size=32, rank_batch=16)
    recipe: Any = SimpleNamespace(train=train, loader=SimpleNamespace(window=8))
    sizes = [170] * 200
    whole = epoch_gets(sizes, objects=[1] * 200, recipe=recipe)
    part = epoch_gets(sizes, objects=[1] * 200, recipe=recipe, most=5000)
    assert part == pytest.approx(whole, rel=0.02)


STAGES = StageSeconds(decode_s=40, vae_s=30, text_s=10, unet_s=60, pack_s=40)


@pytest.mark.parametrize(
    ("stages", "machine", "workers", "seconds", "bound"),
    [
        (STAGES, MACHINE, 1, 100, "the networks"),
        (STAGES, MACHINE, 4, 180 / 4, "the CPU's cores"),  # a core each: nothing overlaps
        (STAGES, GPU, 4, 100 / 4, "the networks"),  # whose host work fits beside them
        (replace(STAGES, decode_s=500), replace(GPU, cores=32), 1, 125, "decoding"),
        (replace(STAGES, pack_s=300), replace(GPU, cores=32), 1, 150, "packing"),
    ],
)
def test_the_busiest_part_bounds_a_worker(
    stages: StageSeconds, machine: Machine, workers: int, seconds: float, bound: str
) -> None:
    config = CacheConfig(url="nowhere")
    found = worker_time(stages, shards=400, workers=workers, machine=machine, config=config)
    assert (found.seconds, found.bound_by) == (pytest.approx(seconds), bound)
    assert found.worker_seconds == pytest.approx(seconds * workers)


def test_whole_shards_go_to_workers() -> None:
    config = CacheConfig(url="nowhere")
    found = worker_time(STAGES, shards=5, workers=4, machine=GPU, config=config)
    assert found.seconds == pytest.approx(100 * 2 / 5)  # one of them takes two of the five
    assert worker_time(StageSeconds(), shards=0, workers=4, machine=GPU, config=config).seconds == 0


def test_payback_is_what_an_epoch_saves() -> None:
    def after(**named: float) -> Any:
        usual: dict[str, Any] = {"samples": 1000, "precompute_s": 500.0, "read_s": 0.01, "step_s": 0.0}
        return payback(passes=PASSES, host=HOST, features=FeaturesConfig(), **usual | named)

    left_out = after()
    assert left_out.online_s == pytest.approx(0.4 / 4 + 0.16 / 16 + 0.8 / 8)
    assert left_out.authors_s == pytest.approx(0.4 / 4 + 0.16 / 16 + 1.6 / 8)
    assert left_out.epochs == pytest.approx(500 / (1000 * (0.21 - 0.01)))
    assert left_out.epochs_authors == pytest.approx(500 / (1000 * (0.31 - 0.01)))
    with_step = after(step_s=0.1)  # reading hides behind the step, computing does not
    assert (with_step.cached_s, with_step.online_s) == (0.1, pytest.approx(0.31))
    assert with_step.epochs == pytest.approx(500 / (1000 * 0.21))
    assert after(read_s=1.0).epochs is None  # a store slower than computing
    assert after(precompute_s=0.0).epochs == 0


def test_prices_give_costs() -> None:
    prices = PriceConfig(storage_gb_month=0.02, gpu_hour=3.6, put_1000=0.005, get_1000=0.0004, egress_gb=0.09)
    spending = Spending(
        on_gpu=True, precompute_s=1000, puts=2000, gets=10_000, stored_bytes=500e9, epoch_gets=50_000,
        epoch_bytes=100e9, epoch_cached_s=0.0, epoch_online_s=36_000.0,
    )  # fmt: skip
    found = money(prices, spending, months=3)
    assert found.precompute == pytest.approx(1.0)
    assert found.precompute_requests == pytest.approx(0.01 + 0.004)
    assert (found.storage_month, found.storage) == (pytest.approx(10), pytest.approx(30))
    assert (found.epoch_requests, found.epoch_egress) == (pytest.approx(0.02), pytest.approx(9))
    assert (found.epoch_cached, found.epoch_online) == (pytest.approx(9.02), pytest.approx(36))
    assert found.epochs == pytest.approx((1 + 30 + 0.014) / (36 - 9.02))


def test_without_a_price_nothing_is_claimed() -> None:
    spending = Spending(
        on_gpu=False, precompute_s=1000, puts=1, gets=1, stored_bytes=1, epoch_gets=1, epoch_bytes=1,
        epoch_cached_s=0.0, epoch_online_s=1.0,
    )  # fmt: skip
    nothing = money(PriceConfig(), spending, months=1)
    assert {getattr(nothing, name) for name in nothing.__slots__} == {None, "USD", 1}
    assert money(PriceConfig(gpu_hour=3), spending, months=1).precompute is None  # a CPU's hours are no GPU's
    assert money(PriceConfig(cpu_hour=3.6), spending, months=1).precompute == pytest.approx(1)


def test_sets_that_ask_for_one_shard_compute_it_once(small_recipe: Callable[..., Path]) -> None:
    same = {"split": "train", "view": {"policy": "squash", "size": 64}}
    recipe = load_recipe(
        small_recipe(sets={"train": same, "again": same}, validate_on=None, evaluate={"sets": ["again"]})
    )
    store, planned = open_store(recipe.cache.url), set[tuple[str, str]]()
    works = []
    for plan in plan_sets(recipe, store=store):
        with plan.table:
            works.append(set_work(recipe, plan, store=store, planned=planned))
    assert [len(one.missing) > 0 for one in works] == [True, False]
    assert len(works[1].committed) == len(works[0].missing)


def test_without_calibration_there_are_counts_and_no_hours(small_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(small_recipe())
    plan = make_cost_plan(recipe, store=open_store(recipe.cache.url), seconds=None)
    assert [one.members for one in plan.sets] == [144, 9]
    assert all(one.bytes > 0 and one.stages is None for one in plan.sets)
    assert (plan.measured, plan.worker_times) == (None, ())
    assert plan.training is not None
    assert plan.training.paybacks == ()
    text = cost_table(plan)
    assert "not calibrated: no hours" in text
    assert "give plan.samples_per_second" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (bytes_text(999), "999 B"),
        (bytes_text(1_520_000), "1.52 MB"),
        (bytes_text(0.5e12), "500 GB"),
        (bytes_text(5e16), "50,000 TB"),
        (duration(0.02), "20 ms"),
        (duration(99), "99 s"),
        (duration(3000), "50 min"),
        (duration(86_400), "24 h"),
        (duration(86_400 * 30), "30 days"),
    ],
)
def test_figures_have_units(shown: str, text: str) -> None:
    assert shown == text
