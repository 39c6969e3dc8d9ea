"""The workstation's compose file: the fields that it may have, loopback, health, no secret; our own servers."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile import instructions
from jsonschema import Draft202012Validator

from pipeline.services.credentials_file import SERVERS_FILE, new_credentials
from pipeline.services.keeper import CREDENTIALS
from pipeline.services.mlflow_server import MlflowServer

CHECKOUT = Path(__file__).parents[3]
COMPOSE = CHECKOUT / "infra" / "compose.yaml"
KUBERAY = CHECKOUT / "infra" / "kuberay"

TEXT = {"type": "string"}
TEXTS = {"type": "array", "items": TEXT}
DURATION = {"type": "string", "pattern": r"^\d+(ms|s|m)$"}
SIZE = {"type": "string", "pattern": r"^\d+[kmg]$"}
PUBLISHED = {"type": "string", "pattern": r"^127\.0\.0\.1:\d+:\d+$"}


def closed(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


HEALTHCHECK = closed(
    {
        "test": {
            "type": "array",
            "items": TEXT,
            "minItems": 2,
            "prefixItems": [{"const": "CMD"}],
        },
        "interval": DURATION,
        "timeout": DURATION,
        "start_period": DURATION,
        "retries": {"type": "integer", "minimum": 1},
    },
    "test",
    "interval",
    "timeout",
    "retries",
)
SERVICE = closed(
    {
        "image": TEXT,
        "build": closed({"context": TEXT, "dockerfile": TEXT, "target": TEXT, "args": {"type": "object"}}),
        "command": TEXTS,
        "environment": {"type": "object", "additionalProperties": TEXT},
        "env_file": TEXTS,
        "configs": {"type": "array", "items": closed({"source": TEXT, "target": TEXT}, "source", "target")},
        "ports": {"type": "array", "items": PUBLISHED},
        "volumes": TEXTS,
        "tmpfs": TEXTS,
        "network_mode": TEXT,
        "shm_size": SIZE,
        "mem_limit": SIZE,
        "read_only": {"const": True},
        "cap_drop": {"const": ["ALL"]},
        "security_opt": {"const": ["no-new-privileges:true"]},
        "restart": {"enum": ["unless-stopped"]},
        "depends_on": {
            "type": "object",
            "additionalProperties": closed({"condition": {"const": "service_healthy"}}, "condition"),
        },
        "healthcheck": HEALTHCHECK,
    },
    "image",
    "env_file",
    "read_only",
    "cap_drop",
    "security_opt",
    "mem_limit",
    "healthcheck",
)
SCHEMA = closed(
    {
        "name": TEXT,
        "services": {"type": "object", "additionalProperties": SERVICE},
        "configs": {"type": "object", "additionalProperties": closed({"file": TEXT}, "file")},
        "volumes": {"type": "object", "additionalProperties": {"type": "null"}},
    },
    "name",
    "services",
)
SCHEMA["patternProperties"] = {"^x-": {}}


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())


def problems(content: dict[str, Any]) -> list[str]:
    errors = Draft202012Validator(SCHEMA).iter_errors(content)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


def test_it_has_what_it_may_have_and_no_more(content: dict[str, Any]) -> None:
    assert problems(content) == []


@pytest.mark.parametrize(
    ("service", "key", "value"),
    [
        ("ray", "ports", ["8265:8265"]),
        ("ray", "privileged", True),
        ("mlflow", "read_only", False),
        ("mlflow", "helthcheck", {}),
        ("gateway", "cap_drop", []),
    ],
)
def test_what_opens_it_is_found(content: dict[str, Any], service: str, key: str, value: object) -> None:
    changed = yaml.safe_load(COMPOSE.read_text())
    changed["services"][service][key] = value
    assert len(problems(changed)) == 1


def test_a_configuration_written_into_it_is_found() -> None:
    """Compose copies it into the container, and refuses to where that is read-only: "`file` is the sole option"."""
    changed = yaml.safe_load(COMPOSE.read_text())
    changed["configs"]["mlflow-access"] = {"content": "[mlflow]"}
    assert problems(changed)


def test_names_in_it_lead_somewhere(content: dict[str, Any]) -> None:
    services = content["services"]
    targets = (CHECKOUT / "infra" / "docker" / "Dockerfile").read_text()
    for service in services.values():
        assert set(service.get("depends_on", ())) <= set(services)
        assert {each["source"] for each in service.get("configs", ())} <= set(content["configs"])
        assert set(service["env_file"]) <= {CREDENTIALS, SERVERS_FILE}
        named = {volume.partition(":")[0] for volume in service.get("volumes", ())}
        assert named <= set(content["volumes"])
        if "build" in service:
            assert f" AS {service['build']['target']}\n" in targets
            assert (COMPOSE.parent / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert [
        each for each in content["configs"].values() if not (COMPOSE.parent / each["file"]).is_file()
    ] == []
    shared = services["gateway"]["network_mode"].partition(":")
    assert shared[0] == "service" and shared[2] in services


def test_the_published_ports_are_those_that_clients_are_told(content: dict[str, Any]) -> None:
    published = {
        port.rpartition(":")[0] for each in content["services"].values() for port in each.get("ports", ())
    }
    told = {
        value.removeprefix("http://") for value in new_credentials().clients.values() if "http://" in value
    }
    assert published == told


def test_no_secret_is_written_in_it(content: dict[str, Any]) -> None:
    made = new_credentials()
    written = {name for service in content["services"].values() for name in service.get("environment", ())}
    secret = {
        name for name in made.clients | made.servers if "KEY" in name or "TOKEN" in name or "PASSWORD" in name
    }
    assert len(secret) >= 7
    assert written.isdisjoint(secret)
    assert {CREDENTIALS, SERVERS_FILE} <= set((COMPOSE.parent / ".gitignore").read_text().splitlines())


def test_jobs_are_not_given_what_the_servers_know(content: dict[str, Any]) -> None:
    """MLflow's key for sessions, and the key that the S3 gateway's gRPC port asks for."""
    given = {name: service["env_file"] for name, service in content["services"].items()}
    assert given.pop("ray") == [CREDENTIALS]
    assert all(files == [CREDENTIALS, SERVERS_FILE] for files in given.values())
    for path in KUBERAY.glob("base/*.yaml"):
        assert [name for name in new_credentials().servers if name in path.read_text()] == [], path


def test_mlflow_lets_in_alike(content: dict[str, Any]) -> None:
    (access,) = [
        document["data"]["access.ini"]
        for document in yaml.safe_load_all((KUBERAY / "services" / "mlflow.yaml").read_text())
        if document["kind"] == "ConfigMap"
    ]
    assert (COMPOSE.parent / content["configs"]["mlflow-access"]["file"]).read_text() == access


def test_compose_kubernetes_and_make_services_start_the_same_servers(
    content: dict[str, Any], tmp_path: Path
) -> None:
    """The commands of the containers agree, and MLflow's has the switches of the one that runs without a container."""
    deployed = {
        container["name"]: [*container["command"], *container["args"]]
        for name in ("object-store", "mlflow")
        for document in yaml.safe_load_all((KUBERAY / "services" / f"{name}.yaml").read_text())
        if document["kind"] == "Deployment"
        for container in document["spec"]["template"]["spec"]["containers"]
    }
    composed = {
        name: service["command"] for name, service in content["services"].items() if "command" in service
    }
    assert sorted(composed["gateway"]) == sorted(deployed["gateway"])
    assert without_places(composed["object-store"]) == without_places(deployed["store"])
    assert without_places(composed["mlflow"]) == without_places(deployed["mlflow"])
    server = MlflowServer(folder=tmp_path, artifacts="s3://ldznet/mlflow", store={})
    server.choose_ports()
    switches = {str(word).partition("=")[0] for word in server.command() if str(word).startswith("--")}
    assert switches == {word.partition("=")[0] for word in composed["mlflow"] if word.startswith("--")}


def test_the_image_and_compose_ask_the_head_alike(content: dict[str, Any]) -> None:
    steps = instructions((CHECKOUT / "infra" / "docker" / "Dockerfile").read_text())
    (asked,) = [step.value.partition("CMD ")[2] for step in steps if step.name == "HEALTHCHECK"]
    assert ["CMD", *json.loads(asked)] == content["services"]["ray"]["healthcheck"]["test"]


def without_places(command: list[str]) -> set[str]:
    return {word for word in command if not word.startswith(("-dir=", "--backend-store-uri="))}
