"""A recipe's leaves as parameters, under names that MLflow takes."""

from pipeline.tracking.params import accepted_name, leaves


def test_leaves_have_dotted_names() -> None:
    recipe = {"train": {"lr": 0.1, "ema": True, "betas": [0.9, 0.99]}, "seed": None}
    assert leaves(recipe) == [
        ("train.lr", "0.1"),
        ("train.ema", "true"),
        ("train.betas", "[0.9, 0.99]"),
        ("seed", "null"),
    ]


def test_names_of_the_user_s_stay_apart_without_what_mlflow_refuses() -> None:
    splits = {"val": "a", "refcoco+": "b", "refcoco@": "c", "a//b": "d", "Prüf: 1_2-3": "e"}
    assert dict(leaves({"splits": splits})) == {
        "splits.val": "a",
        "splits.refcoco-x2b-": "b",
        "splits.refcoco-x40-": "c",
        "splits.a-x2f--x2f-b": "d",
        "splits.Prüf: 1_2-3": "e",
    }


def test_a_name_that_mlflow_takes_stays_as_it_is() -> None:
    name = accepted_name("source_run.train.ldznet (new)\n")
    assert name == "source_run.train.ldznet -x28-new-x29--xa-"
    assert accepted_name(name) == name
