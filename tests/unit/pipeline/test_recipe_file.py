"""Recipes: YAML and overrides into frozen objects, or one line that names the mend."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ldznet.errors import UserError
from pipeline.experiments.grid import read_grid
from pipeline.recipe_file import dump_recipe, load_recipe, override_of, parse_recipe

MINIMAL = """
name: small
data: {format: folder, root: photos}
ldm: {source: ldm}
cache: {url: cache}
sets:
  train: {split: train, view: {policy: shared, size: 128}, timesteps: {low: 300, high: 500}, prompts: published}
  val: {split: val, view: {size: 128}}
"""


@pytest.fixture
def recipe_path(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    return path


def test_overrides_win_and_are_typed(recipe_path: Path) -> None:
    recipe = load_recipe(
        recipe_path,
        ["train.lr=1e-4", "sets.train.draws=3", "features.blocks=[8,6,6]", "network.blocks=[6,8]"],
    )
    assert recipe.train.lr == pytest.approx(1e-4)
    assert recipe.sets["train"].draws == 3
    assert recipe.features.blocks == (6, 8)


def test_resolved_recipe_reads_back_as_itself(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path, ["train.steps=7"])
    recipe_path.write_text(dump_recipe(recipe))
    assert load_recipe(recipe_path) == recipe
    assert load_recipe(recipe_path).digest() == recipe.digest()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["train.stepz=3"], "unknown key 'train.stepz': did you mean 'steps'?"),
        (["sets.train.veiw.size=128"], "unknown key 'sets.train.veiw': did you mean 'view'?"),
        (["sets.train.view.sise=128"], "unknown key 'sets.train.view.sise': did you mean 'size'?"),
        (["trian.steps=3"], "unknown key 'trian': did you mean 'train'?"),
        (["cache.workers=many"], "cache.workers: "),
        (["sets.val.view.size=100"], "sets.val.view.size: "),
        (["features.blocks=[6,17]"], "there is no block 17"),
        (["sets.train.timesteps.high=1001"], "sets.train.timesteps.high: "),
        (["sets.train.timesteps.low=600"], "must lie above low"),
        (["sets.val.prompts=[a photo]"], "must hold {} exactly once"),
        (["network.blocks=[5]"], "fuses block 5"),
        (["network.kind=rgbnet"], "features.keep_images"),
        (["sets.val.split=test"], "validate_on=val is of the test split, which only measures"),
        (["data.splits={val: test}"], "validate_on=val is of the test split, which only measures"),
        (["sets.val.split=testA"], "validate_on=val is of the test split, which only measures"),
        (
            ["train.patience=2", "train.validate_every=5", "validate_on=null"],
            "train.patience waits for better validations, and validate_on=null has none",
        ),
        (
            ["loader.mode=sequential", "train.workers={min: 1, max: 2}", "train.batch_size=4"],
            "loader.mode=sequential deals shards to a fixed number of ranks",
        ),
        (["output=s3://bucket/mine"], "output=s3://bucket/mine is no local folder"),
        (["evaluate.sets=[tset]"], "evaluate.sets names 'tset'"),
        (["sets.refcoco+.split=val"], "sets: 'refcoco+' cannot name a set: take letters, digits, _, . and -"),
        (["sets.a/b.split=val"], "sets: 'a/b' cannot name a set"),
        (["sets._a.split=val"], "sets: '_a' cannot name a set"),
        (["evaluate.models=[{source: a, name: a+b}]"], "evaluate.models.0.name: "),
        (["steps"], "is no override"),
        (["data.format=coco"], "data.format: "),
    ],
)
def test_mistakes_are_named_in_one_line(recipe_path: Path, overrides: list[str], told: str) -> None:
    with pytest.raises(UserError) as error:
        load_recipe(recipe_path, overrides)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["testA", "3d", "umd-val_2.test", "prüfung"])
def test_sets_have_names_of_the_user_s(recipe_path: Path, name: str) -> None:
    recipe_path.write_text(f"{MINIMAL}  {name}: {{split: test}}\n")
    assert name in load_recipe(recipe_path).scored_sets


def test_missing_key_is_named(recipe_path: Path) -> None:
    recipe_path.write_text(MINIMAL.replace("name: small", ""))
    with pytest.raises(UserError, match="the key 'name' is missing"):
        load_recipe(recipe_path)


@pytest.mark.parametrize("text", ["", "- a\n- b", "a: [", "a: 1\na: 2"])
def test_what_is_no_recipe_is_refused(recipe_path: Path, text: str) -> None:
    recipe_path.write_text(text)
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        load_recipe(recipe_path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no recipe"):
        load_recipe(tmp_path / "none.yaml")


def test_environment_is_not_read_into_a_recipe(recipe_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_SECRET", "swordfish")
    recipe = load_recipe(recipe_path, ["ldm.source=${oc.env:PLANTED_SECRET}"])
    assert "swordfish" not in dump_recipe(recipe)


def test_request_depends_on_what_is_asked_and_on_nothing_else(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path)
    same = load_recipe(recipe_path, ["train.steps=9", "cache.workers=2", "name=other"])
    other = load_recipe(recipe_path, ["sets.train.draws=2"])
    assert recipe.request_digest("train") == same.request_digest("train")
    assert recipe.request_digest("train") != other.request_digest("train")
    assert recipe.request_digest("val") == other.request_digest("val")


def test_parse_names_its_source() -> None:
    with pytest.raises(UserError, match="somewhere: "):
        parse_recipe({}, source="somewhere")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("/runs/a", "output=/runs/a"),
        ("1", 'output="1"'),
        ("/data/exp #3/proj", 'output="/data/exp #3/proj"'),
        ("/data/a,b", 'output="/data/a,b"'),
        ("yes: no", 'output="yes: no"'),
        ("/données/[é", 'output="/données/[é"'),
        ('say "so" \\ n', 'output="say \\"so\\" \\\\ n"'),
    ],
)
def test_a_text_becomes_an_override_that_means_it(
    value: str, written: str, small_recipe: Callable[..., Path]
) -> None:
    override = override_of("output", value)
    if "say" not in value and "[" not in value:
        assert override == written
    assert read_grid([override]).axes == ()
    assert load_recipe(small_recipe(), list(read_grid([override]).fixed)).output == value
