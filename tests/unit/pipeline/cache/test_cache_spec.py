"""The key of a cache: equal bytes, equal key; any change that alters a byte alters the key."""

from typing import Any

import pytest

from pipeline.cache.spec import CacheSpec, FeaturesConfig, PolicyConfig, TimestepConfig

BASE = CacheSpec(ldm_digest="d" * 64, features=FeaturesConfig(stored_dtype="int8"), policy=PolicyConfig())

# One other valid value for every leaf of the specification.
OTHER_VALUES: dict[tuple[str, ...], Any] = {
    ("content",): "columns",
    ("schema_version",): 1,
    ("ldm_digest",): "e" * 64,
    ("features", "blocks"): (6, 7),
    ("features", "seed"): 1,
    ("features", "compute_dtype"): "bf16",
    ("features", "stored_dtype"): "bf16",
    ("features", "scale_group"): 4,
    ("features", "stored_from"): "bf16",
    ("features", "keep_images"): True,
    ("features", "image_batch"): 5,
    ("features", "prompt_batch"): 5,
    ("features", "feature_batch"): 5,
    ("features", "threads"): 2,
    ("features", "channels_last"): True,
    ("features", "compile"): True,
    ("policy", "view", "policy"): "shared",
    ("policy", "view", "size"): 512,
    ("policy", "timesteps", "low"): 399,
    ("policy", "timesteps", "high"): 402,
    ("policy", "prompts"): ("{}.",),
    ("policy", "draws"): 2,
}


def _leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in _leaves(item, (*path, key))]
    return [path]


def _changed(path: tuple[str, ...]) -> CacheSpec:
    content = BASE.model_dump()
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = OTHER_VALUES[path]
    return CacheSpec.model_validate(content)


def test_every_field_has_another_value_here() -> None:
    assert set(_leaves(BASE.model_dump())) == set(OTHER_VALUES)


@pytest.mark.parametrize("path", OTHER_VALUES, ids=".".join)
def test_every_field_changes_the_key(path: tuple[str, ...]) -> None:
    assert _changed(path).key != BASE.key


def test_key_ignores_order_and_repetition() -> None:
    one = CacheSpec(
        ldm_digest="d",
        features=FeaturesConfig(blocks=(10, 6, 6)),
        policy=PolicyConfig(prompts=("b {}", "a {}")),
    )
    two = CacheSpec.model_validate(
        {
            "policy": {"prompts": ["a {}", "b {}", "a {}"]},
            "features": {"blocks": [6, 10]},
            "ldm_digest": "d",
        }
    )
    assert one == two
    assert one.key == two.key


def test_key_is_stable_across_versions_of_this_project() -> None:
    # Caches on object storage are found by this key: a change here orphans them, so raise SCHEMA_VERSION instead.
    assert BASE.key == "6ba8205f5e6c6abe941d860c1f2fad4e61f83d1052cdf75c31ddb82c7e5e0c98"
    assert BASE.key == CacheSpec.model_validate_json(BASE.canonical()).key


@pytest.mark.parametrize(
    ("asked", "middle", "told"),
    [
        ({}, 400, "400"),
        ({"low": 300, "high": 500}, 399, "300 to 499"),
        ({"grid": [100, 200]}, 100, "100, 200"),
        ({"grid": [100, 200, 700]}, 200, "100, 200, 700"),
    ],
)
def test_one_timestep_for_all_is_the_middle(asked: dict, middle: int, told: str) -> None:
    timesteps = TimestepConfig.model_validate(asked)
    assert (timesteps.middle, str(timesteps)) == (middle, told)


def test_a_grid_changes_the_key_and_bounds_beside_it_do_not() -> None:
    def key(timesteps: dict[str, Any]) -> str:
        return BASE.model_copy(update={"policy": PolicyConfig.model_validate({"timesteps": timesteps})}).key

    assert len({BASE.key, key({"grid": [100, 400]}), key({"grid": [100, 500]})}) == 3
    assert key({"grid": [100, 400], "low": 300, "high": 500}) == key({"grid": [100, 400]})
