"""Which overrides name alternatives, what a short key means, and what no grid can vary."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldznet.errors import UserError
from pipeline.experiments.grid import Axis, read_grid


def axes(*overrides: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(axis.key, axis.values) for axis in read_grid(overrides).axes]


def test_commas_part_alternatives() -> None:
    grid = read_grid(["network.fusion=cross_attention,concat", "train.lr=1e-4", "train.seed=1, 2,3"])
    assert grid.axes == (
        Axis(key="network.fusion", values=("cross_attention", "concat")),
        Axis(key="train.seed", values=("1", "2", "3")),
    )
    assert grid.fixed == ("train.lr=1e-4",)
    cells = list(grid.choices())
    assert len(cells) == 6
    assert cells[1] == (("network.fusion", "cross_attention"), ("train.seed", "2"))


@pytest.mark.parametrize(
    ("value", "alternatives"),
    [
        ("[8,9]", None),
        ("[8],[8,9]", ("[8]", "[8,9]")),
        ("{min: 1, max: 2}", None),
        ("{min: 1, max: 2},4", ("{min: 1, max: 2}", "4")),
        ("'a,b'", None),
        ('"a,b",c', ('"a,b"', "c")),
        ("['a]',b],c", ("['a]',b]", "c")),
        ("it's,hers", ("it's", "hers")),
        ("[8,9", None),  # unfinished: refused as YAML
        ("null,0.5", ("null", "0.5")),
        ("", None),
    ],
)
def test_brackets_and_quotes_keep_a_value_together(value: str, alternatives: tuple[str, ...] | None) -> None:
    grid = read_grid([f"network.blocks={value}"])
    assert [axis.values for axis in grid.axes] == ([alternatives] if alternatives else [])
    assert grid.fixed == (() if alternatives else (f"network.blocks={value}",))


@given(st.lists(st.text("abc019.-_[]", min_size=1, max_size=5), min_size=2, max_size=5, unique=True))
def test_plain_words_come_back(words: list[str]) -> None:
    words = [word for word in words if not set("[]") & set(word)]
    if len(words) > 1:
        assert axes(f"train.engine={','.join(words)}") == [("train.engine", tuple(words))]


def test_short_keys() -> None:
    assert axes("fusion=cross_attention,concat", "seed=1,2") == [
        ("network.fusion", ("cross_attention", "concat")),
        ("train.seed", ("1", "2")),
    ]
    assert read_grid(["steps=5", "blocks=[8]", "window=4"]).fixed == (
        "train.steps=5",
        "network.blocks=[8]",
        "loader.window=4",
    )
    # The recipe's own keys mean themselves, and what nobody knows is left to whoever applies it.
    assert read_grid(["name=x", "features={}", "stepps=5"]).fixed == ("name=x", "features={}", "stepps=5")


def test_a_short_key_that_means_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.experiments.grid.SECTIONS", ("network", "train", "features"))
    with pytest.raises(UserError, match=r"'seed' is short for train\.seed and features\.seed"):
        read_grid(["seed=1,2"])


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("cache.url=s3://a,b", "only keys of network, train, loader have alternatives"),
        ("features.blocks=[6],[7]", "a grid runs over one cache"),
        ("features=cached,online", "a grid runs over one cache"),
        ("name=a,b", "quote it: name="),
        ("train.seed=1,,2", "one of the alternatives is empty"),
        ("train.seed=1,2,", "one of the alternatives is empty"),
        ("train.seed=1,2,1", "names 1 2 times"),
    ],
)
def test_what_no_grid_can_vary(override: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_grid([override])


def test_a_key_is_given_once() -> None:
    with pytest.raises(UserError, match=r"train\.seed is given twice"):
        read_grid(["seed=1,2", "train.seed=3"])


def test_without_alternatives_there_is_one_cell() -> None:
    grid = read_grid(["train.lr=1e-4", "no-override"])
    assert (grid.axes, list(grid.choices())) == ((), [()])
    assert grid.fixed == ("train.lr=1e-4", "no-override")
