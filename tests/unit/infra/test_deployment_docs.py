"""The deployment guide and the threat model name files, tests, commands and policies that there are."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kustomization import render

from jobs.cli import COMMANDS
from jobs.submit_request import RECIPE_JOBS
from pipeline.cache.lease import LEASE_PREFIX
from pipeline.recipe import Recipe
from pipeline.services.credentials_file import SERVERS_FILE, new_credentials
from pipeline.services.keeper import CREDENTIALS
from pipeline.training.run import FINISHED_RECORD

CHECKOUT = Path(__file__).parents[3]
KUBERAY = CHECKOUT / "infra" / "kuberay"
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
    # Shards, models and notes of what is finished lie among what has had its day: no age tells them apart.
    for rule in lifecycle["Rules"]:
        assert set(rule) == {"ID", "Status", "Filter", "AbortIncompleteMultipartUpload"}


def allowed(policy: dict, action: str) -> set[str]:
    return {statement["Resource"] for statement in policy["Statement"] if action in statement["Action"]}


def test_the_guides_prefixes_are_the_overlays() -> None:
    recipe = (CHECKOUT / "infra" / "kuberay" / "overlays" / "gpu" / "recipe.yaml").read_text()
    for prefix in re.findall(r"^\| `([a-z]+)/` \|", GUIDE.read_text(), re.MULTILINE):
        assert prefix == "mlflow" or f"s3://ldznet/{prefix}" in recipe


def test_what_is_removed_by_hand_is_where_training_puts_it() -> None:
    (removed,) = re.findall(r"aws s3 rm --recursive s3://ldznet/storage/(\S+)", GUIDE.read_text())
    assert removed == "phrasecut/TRAINING/checkpoints/"
    assert f"`{FINISHED_RECORD}`" in GUIDE.read_text()
    layout = (CHECKOUT / "pipeline" / "training" / "run.py").read_text()
    assert 'self.checkpoints_url = f"{self.storage}/{self.name}/checkpoints"' in layout


def section(title: str) -> str:
    (found,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    return str(found)


def test_jobs_that_ended_are_deleted_before_they_are_applied_again() -> None:
    """Both overlays name them alike, and KubeRay starts nothing for one that has ended."""
    names = {
        overlay: {
            (each["kind"], each["metadata"]["name"])
            for each in render(KUBERAY / "overlays" / overlay)
            if each["apiVersion"] == "ray.io/v1"
        }
        for overlay in ("cpu-smoke", "gpu")
    }
    assert names["cpu-smoke"] == names["gpu"]
    second = section("Kubernetes").partition("5. **PhraseCut.**")[2].partition("6. **Score it**")[0]
    assert "kubectl -n ldznet delete rayjob,raycluster --all" in second.partition("four lines of step 4")[0]
    told = [" ".join(path.read_text().split()) for path in (GUIDE, *(KUBERAY / "base").glob("*.yaml"))]
    again = [
        text[max(0, found.start() - 150) : found.end() + 50]
        for text in told
        for found in re.finditer(r"\bappl(y|ied|ying) (it |them )?again", text)
    ]
    assert len(again) >= 6
    assert [words for words in again if not re.search("[Dd]elete", words)] == []


def test_secrets_of_the_guide_are_those_that_pods_ask_for(tmp_path: Path) -> None:
    """With the S3 server and MLflow inside: the guide's own lines, with a kubectl that writes down what it is given."""
    lines = section("Kubernetes").splitlines()
    begin = next(number for number, line in enumerate(lines) if "ldznet services credentials" in line)
    end = next(number for number, line in enumerate(lines[begin:], begin) if not line.strip())
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.parent.mkdir()
    kubectl.write_text('#!/bin/bash\necho "$*" >> words\ncp "${7#--from-env-file=}" "$6.env"\n')
    kubectl.chmod(0o755)
    path = os.pathsep.join([str(kubectl.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    script = "set -euo pipefail\n" + "\n".join(lines[begin:end])
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env={**os.environ, "PATH": path}, check=True)
    made = {
        file.stem: dict(line.split("=", 1) for line in file.read_text().splitlines())
        for file in tmp_path.glob("*.env")
    }
    assert made["ldznet-s3"]["AWS_ENDPOINT_URL"] == "http://object-store:8333"
    assert made["ldznet-mlflow"]["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    told = (tmp_path / "words").read_text()
    secrets = [
        value for each in made.values() for key, value in each.items() if "SECRET" in key or "PASSWORD" in key
    ]
    assert len(secrets) == 3 and not any(secret in told for secret in secrets)
    asked = [*references(render(KUBERAY / "overlays" / "cpu-smoke"))]
    assert {(each["name"], each["key"]) for each in asked if not each.get("optional")} <= {
        (name, key) for name, secret in made.items() for key in secret
    }
    assert {each["name"] for each in asked} == set(made)


def references(node: Any) -> list[dict[str, Any]]:
    """Every `secretKeyRef` in documents."""
    if isinstance(node, list):
        return [each for item in node for each in references(item)]
    if not isinstance(node, dict):
        return []
    found = [each for key, value in node.items() if key != "secretKeyRef" for each in references(value)]
    return [*found, node["secretKeyRef"]] if "secretKeyRef" in node else found


def test_three_machines_start_the_servers_of_compose() -> None:
    """With other places, addresses and nothing else; what knows no password stays on loopback."""
    text = section("Three machines of your own").replace("\\\n", " ")
    composed = yaml.safe_load((CHECKOUT / "infra" / "compose.yaml").read_text())["services"]
    for name, begin in (("object-store", "weed -logtostderr mini"), ("gateway", "weed -logtostderr s3")):
        (line,) = [line for line in text.splitlines() if begin in line]
        words = shlex.split(line)[1:-1]  # after the variable, before &
        assert without_places(words) == without_places(composed[name]["command"])
        listens = {word.partition("=")[2] for word in words if word.startswith(("-ip=", "-ip.bind="))}
        assert listens == ({"127.0.0.1"} if name == "object-store" else {"10.0.0.1"})
    (line,) = [line for line in text.splitlines() if "mlflow server" in line]
    words = [word for word in shlex.split(line) if not re.match("[A-Z_]+=", word)]
    assert without_places(words) == without_places(composed["mlflow"]["command"])
    assert set(re.findall("MLFLOW_[A-Z_]+(?==)", line)) <= set(composed["mlflow"]["environment"])


def without_places(words: list[str]) -> set[str]:
    places = ("-dir=", "-ip.bind=", "--host=", "--backend-store-uri=", "--allowed-hosts=")
    return {word for word in words if not word.startswith(places)}


def test_three_machines_copy_what_nodes_need_and_no_more() -> None:
    text = section("Three machines of your own")
    (made,) = re.findall(r"ldznet services credentials --folder (\S+) --host (\S+)", text)
    assert made == ("runs/secrets", "10.0.0.1")
    assert "/runs/" in (CHECKOUT / ".gitignore").read_text().splitlines(), "git leaves them alone"
    copies = re.findall(r"scp .*", text)
    assert len(copies) == 1
    assert f"{made[0]}/{CREDENTIALS}" in copies[0] and SERVERS_FILE not in copies[0]
    sourced = re.findall(r"source (\S+?);", text)
    assert set(sourced) == {f"{made[0]}/{CREDENTIALS}", f"{made[0]}/{SERVERS_FILE}"}
    assert sourced.count(f"{made[0]}/{SERVERS_FILE}") == 1, "in the servers' terminal alone"
    known = new_credentials("10.0.0.1")
    assert known.clients["AWS_ENDPOINT_URL"] == "http://10.0.0.1:8333"
    assert known.clients["MLFLOW_TRACKING_URI"] == "http://10.0.0.1:5000"
    assert "RAY_AUTH_TOKEN" not in text and "auth_token" not in text, "one token, from one file"
