"""The deployment guide and the threat model name files, tests, commands and policies that there are."""

import json
import re
from pathlib import Path

import pytest

from jobs.cli import COMMANDS
from jobs.submit_request import RECIPE_JOBS
from pipeline.cache.lease import LEASE_PREFIX
from pipeline.recipe import Recipe

CHECKOUT = Path(__file__).parents[3]
GUIDE = CHECKOUT / "docs" / "cluster.md"
THREATS = CHECKOUT / "docs" / "security.md"
ROOMS = "tests|infra|docs|jobs|pipeline|ldznet"


@pytest.fixture(params=[GUIDE, THREATS], ids=lambda path: path.stem)
def document(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_files_are_there(document: Path) -> None:
    text = document.read_text()
    named = set(re.findall(rf"(?<![\w/.~:-])(?:{ROOMS})/[\w./-]*[\w/]", text))
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    assert [name for name in sorted(named) if not (CHECKOUT / name).exists()] == []
    assert [link for link in sorted(links) if not (document.parent / link).exists()] == []
    assert links


def test_tests_are_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", THREATS.read_text())
    assert len(named) > 20
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not re.search(rf"^def {name}\(", (CHECKOUT / file).read_text(), re.MULTILINE)
    ]
    assert missing == []


def test_every_threat_has_a_test() -> None:
    rows = [line for line in THREATS.read_text().splitlines() if line.startswith("|")][2:]
    assert len(rows) > 10
    assert [row for row in rows if "::test_" not in row.rsplit("|", 2)[1]] == []


def test_commands_are_there(document: Path) -> None:
    text = document.read_text()
    commands = set(re.findall(r"(?:^|[`(])\s*ldznet ([a-z]+)", text, re.MULTILINE))
    modules = set(re.findall(r"python -m (jobs\.\w+)", text))
    targets = set(re.findall(r"`make ([a-z-]+)`", text))
    assert commands <= set(COMMANDS)
    assert [
        name for name in modules if not (CHECKOUT / name.replace(".", "/")).with_suffix(".py").exists()
    ] == []
    assert targets <= set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    if document == GUIDE:
        assert {"plan", "cache", "precompute", "services", "submit"} <= commands
        assert "jobs.pipeline" in modules
        submitted = set(re.findall(r"ldznet submit ([a-z]+)", text))
        assert {"pipeline", "evaluate"} <= submitted <= set(RECIPE_JOBS)


def test_keys_of_recipes_are_there() -> None:
    named = set(
        re.findall(
            r"\b((?:features|cache|train|network|loader|plan|evaluate|ldm)\.[a-z_0-9.]*[a-z_0-9])\b",
            GUIDE.read_text(),
        )
    )
    assert len(named) > 10
    for key in named:
        model = Recipe
        for part in key.split("."):
            assert part in model.model_fields, key
            model = model.model_fields[part].annotation


def test_policies_are_sound() -> None:
    policy, training, lifecycle = (
        json.loads(text) for text in re.findall(r"```json\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    )
    for statements in (policy["Statement"], training["Statement"]):
        for statement in statements:
            assert statement["Effect"] == "Allow"
            actions = (
                {statement["Action"]} if isinstance(statement["Action"], str) else set(statement["Action"])
            )
            assert not {action for action in actions if "*" in action}
            objects = any(action.endswith(("Object", "MultipartUpload")) for action in actions)
            for resource in (
                [statement["Resource"]] if isinstance(statement["Resource"], str) else statement["Resource"]
            ):
                assert resource.startswith("arn:aws:s3:::ldznet")
                assert ("/" in resource) == objects, "object actions are on objects, the others on the bucket"
    # Under the cache both remove their leases and nothing else, and training writes nothing else.
    leases = f"arn:aws:s3:::ldznet/cache/{LEASE_PREFIX}*"
    assert allowed(policy, "s3:DeleteObject") == {leases}
    for action in ("s3:PutObject", "s3:DeleteObject"):
        assert allowed(training, action) == {leases, "arn:aws:s3:::ldznet/storage/*"}
    prefixes = {rule["Filter"]["Prefix"] for rule in lifecycle["Rules"] if "Expiration" in rule}
    assert prefixes == {"storage/"}


def allowed(policy: dict, action: str) -> set[str]:
    return {statement["Resource"] for statement in policy["Statement"] if action in statement["Action"]}


def test_the_guides_prefixes_are_the_overlays() -> None:
    recipe = (CHECKOUT / "infra" / "kuberay" / "overlays" / "gpu" / "recipe.yaml").read_text()
    for prefix in re.findall(r"^\| `([a-z]+)/` \|", GUIDE.read_text(), re.MULTILINE):
        assert prefix == "mlflow" or f"s3://ldznet/{prefix}" in recipe
