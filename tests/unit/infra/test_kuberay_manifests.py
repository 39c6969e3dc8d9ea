"""Kubernetes documents: valid, closed, and running what the code can run."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from closed_schema import problems, problems_within
from kustomization import Document, apply, documents_of, render

from pipeline.recipe import Recipe
from pipeline.recipe_file import load_recipe

CHECKOUT = Path(__file__).parents[3]
KUBERAY = CHECKOUT / "infra" / "kuberay"
SCHEMAS = CHECKOUT.parent / "shared" / "kuberay"
OVERLAYS = ("gpu", "cpu-smoke")
SECRETS = {"ldznet-s3", "ldznet-mlflow"}
VERSIONS = {
    "RayJob": "ray.io/v1",
    "RayCluster": "ray.io/v1",
    "Namespace": "v1",
    "ConfigMap": "v1",
    "Service": "v1",
    "PersistentVolumeClaim": "v1",
    "Deployment": "apps/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "PriorityClass": "scheduling.k8s.io/v1",
}
# What the kinds without a schema at hand may have: spec, or the fields in its place.
FIELDS = {
    "Namespace": set(),
    "ConfigMap": {"data"},
    "PriorityClass": {"value", "globalDefault", "preemptionPolicy", "description"},
}


def with_priority() -> list[Document]:
    return render(KUBERAY / "components" / "priority", render(KUBERAY / "overlays" / "gpu"))


def rendered(name: str) -> list[Document]:
    return with_priority() if name == "gpu+priority" else render(KUBERAY / "overlays" / name)


def schema(kind: str) -> dict[str, Any]:
    path = SCHEMAS / f"{kind.lower()}s.v1.schema.json"
    if not path.is_file():
        pytest.skip("no schemas of KubeRay beside the checkout (../shared/kuberay)")
    return json.loads(path.read_text())


def cluster_of(document: Document) -> dict[str, Any]:
    return document["spec"]["rayClusterSpec"] if document["kind"] == "RayJob" else document["spec"]


def groups_of(document: Document) -> list[dict[str, Any]]:
    cluster = cluster_of(document)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods(documents: list[Document]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod that the documents make, with a name for messages."""
    for document in documents:
        name = f"{document['kind']} {document['metadata']['name']}"
        if document["kind"] in {"RayJob", "RayCluster"}:
            for group in groups_of(document):
                yield f"{name} {group.get('groupName', 'head')}", group["template"]["spec"]
        if document["kind"] == "RayJob":
            yield f"{name} submitter", document["spec"]["submitterPodTemplate"]["spec"]
        if document["kind"] == "Deployment":
            yield name, document["spec"]["template"]["spec"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def autoscalers(documents: list[Document]) -> dict[str, dict[str, Any]]:
    """The containers that the operator puts beside a head, by the name of its pod as `pods` has it."""
    return {
        f"{document['kind']} {document['metadata']['name']} head": cluster_of(document)["autoscalerOptions"]
        for document in documents
        if document["apiVersion"] == "ray.io/v1" and cluster_of(document).get("enableInTreeAutoscaling")
    }


def recipe_of(documents: list[Document], folder: Path) -> Path:
    (text,) = [each["data"]["recipe.yaml"] for each in documents if each["metadata"]["name"] == "recipe"]
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_it_renders_as_kubectl_renders_it(overlay: str) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl to compare with")
    done = subprocess.run(
        [kubectl, "kustomize", str(KUBERAY / "overlays" / overlay)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    theirs = {key(each): each for each in yaml.safe_load_all(done.stdout)}
    assert {key(each): each for each in rendered(overlay)} == theirs


def key(document: Document) -> tuple[str, str]:
    return document["kind"], document["metadata"]["name"]


@pytest.mark.parametrize("overlay", [*OVERLAYS, "gpu+priority"])
def test_jobs_and_clusters_are_valid_to_the_letter(overlay: str) -> None:
    found = [each for each in rendered(overlay) if each["apiVersion"] == "ray.io/v1"]
    assert {key(each) for each in found} == {
        ("RayJob", "precompute"),
        ("RayJob", "train"),
        ("RayCluster", "development"),
    }
    for document in found:
        assert problems(document, schema(document["kind"])) == []


def test_a_wrong_field_anywhere_is_found() -> None:
    template = "/spec/rayClusterSpec/headGroupSpec/template/spec"
    wrong = {
        "/spec/backofLimit": 3,
        f"{template}/containers/0/securityContext/readOnlyRootFileSystem": True,
        f"{template}/containers/0/env/0/valueFrom/secretKeyRef/nam": "x",
        f"{template}/volumes/0/emptyDir/size": "1Gi",
        "/spec/rayClusterSpec/authOptions/mode": "open",
        "/spec/ttlSecondsAfterFinished": "soon",
    }
    for path, value in wrong.items():
        document = documents_of(KUBERAY / "base" / "precompute.yaml")[0]
        apply(document, {"op": "add", "path": path, "value": value})
        found = problems(document, schema("RayJob"))
        assert len(found) == 1, (path, found)
        assert path.rpartition("/")[2] in found[0] or str(value) in found[0]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_other_documents_are_valid_as_far_as_can_be_told(overlay: str) -> None:
    """Pods and services by the schemas inside KubeRay's; the rest by the fields that they may have."""
    job = schema("RayJob")["properties"]["spec"]["properties"]["rayClusterSpec"]["properties"]
    head = job["headGroupSpec"]["properties"]
    for document in rendered(overlay):
        kind, spec = document["kind"], document.get("spec", {})
        fields = set(document) - {"apiVersion", "kind", "metadata"}
        assert fields == FIELDS.get(kind, {"spec"}), key(document)
        if kind == "Deployment":
            assert set(spec) == {"replicas", "strategy", "selector", "template"}
            assert problems_within(spec["template"], head["template"]) == []
            assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
        elif kind == "Service":
            assert problems_within(spec, head["headService"]["properties"]["spec"]) == []
            assert spec["type"] == "ClusterIP"
        elif kind == "NetworkPolicy":
            assert set(spec) <= {"podSelector", "policyTypes", "ingress"}
        elif kind == "PersistentVolumeClaim":
            assert set(spec) == {"accessModes", "resources"}


@pytest.mark.parametrize("overlay", [*OVERLAYS, "gpu+priority"])
def test_kinds_and_versions(overlay: str) -> None:
    documents = rendered(overlay)
    for document in documents:
        assert document["apiVersion"] == VERSIONS[document["kind"]]
        if document["kind"] not in {"Namespace", "PriorityClass"}:
            assert document["metadata"]["namespace"] == "ldznet"
    assert len({key(each) for each in documents}) == len(documents)
    assert not [each for each in documents if each["kind"] == "Secret"], "Secrets are by reference"


@pytest.mark.parametrize("overlay", [*OVERLAYS, "gpu+priority"])
def test_every_pod_is_closed(overlay: str) -> None:
    documents = rendered(overlay)
    (namespace,) = [each for each in documents if each["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    found, beside = dict(pods(documents)), autoscalers(documents)
    assert len(found) >= 8
    assert set(beside) == {"RayJob precompute head", "RayCluster development head"} <= set(found)
    for name, pod in found.items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] >= 1000, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), name
        assert name in beside or pod["automountServiceAccountToken"] is False, (
            name
        )  # autoscalers ask the API server
        assert {next(iter(set(volume) - {"name"})) for volume in pod["volumes"]} <= {
            "emptyDir",
            "configMap",
            "persistentVolumeClaim",
        }, name
        for container in [*containers(pod), *([beside[name]] if name in beside else [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert container["resources"]["requests"] == container["resources"]["limits"], name
            assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"]["limits"]), name
            known = {volume["name"] for volume in pod["volumes"]}
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert set(mounts.values()) <= known, name
            assert mounts.get("/tmp") == "tmp", name  # noqa: S108 - a path in the container


def test_priority_is_that_of_the_class() -> None:
    documents = with_priority()
    (priority,) = [each["metadata"]["name"] for each in documents if each["kind"] == "PriorityClass"]
    named = {name: pod.get("priorityClassName") for name, pod in pods(documents)}
    jobs = {
        f"RayJob {name}" for name in ("precompute head", "precompute workers", "train head", "train ranks")
    }
    assert {name for name, value in named.items() if value == priority} == jobs
    assert set(named.values()) == {priority, None}
    assert not [each for each in rendered("gpu") if each["kind"] == "PriorityClass"], (
        "only where it is asked for"
    )


def test_gpus_are_waited_for(tmp_path: Path) -> None:
    """A cluster that has scaled to no GPU node looks like one without GPUs: nothing may go on there on a CPU."""
    recipe = load_recipe(recipe_of(rendered("gpu"), tmp_path))
    assert recipe.train.cluster.device == "gpu"
    assert recipe.train.cluster.wait_minutes >= 30
    assert recipe.evaluate.device == "gpu"
    assert recipe.cache.gpus_per_worker == 1


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_come_by_reference_only(overlay: str) -> None:
    secret = re.compile("KEY|SECRET|PASSWORD|TOKEN|USERNAME|URI|ENDPOINT|REGION")
    seen = set()
    for name, pod in pods(rendered(overlay)):
        for container in containers(pod):
            assert "envFrom" not in container, name
            for variable in container.get("env", ()):
                if "valueFrom" in variable:
                    assert set(variable["valueFrom"]) == {"secretKeyRef"}, name
                    seen.add(variable["valueFrom"]["secretKeyRef"]["name"])
                else:
                    assert not secret.search(variable["name"]), f"{name}: {variable['name']} is written out"
    assert seen == SECRETS


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_comes_in_from_outside_the_namespace(overlay: str) -> None:
    policies = [each["spec"] for each in rendered(overlay) if each["kind"] == "NetworkPolicy"]
    assert {"podSelector": {}, "policyTypes": ["Ingress"]} in policies  # all pods, nobody
    for spec in policies:
        assert spec["policyTypes"] == ["Ingress"]
        for rule in spec.get("ingress", ()):
            assert rule["from"] == [{"podSelector": {}}]  # and no namespaceSelector, no ipBlock
    for document in rendered(overlay):
        if document["apiVersion"] == "ray.io/v1":
            head = cluster_of(document)["headGroupSpec"]
            assert head["serviceType"] == "ClusterIP"
            assert "enableIngress" not in head


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_clusters_ask_for_a_token_and_have_the_installed_ray(overlay: str) -> None:
    (pin,) = re.findall(r"^ray==(.+)$", (CHECKOUT / "constraints.txt").read_text(), re.MULTILINE)
    for document in rendered(overlay):
        if document["apiVersion"] == "ray.io/v1":
            cluster = cluster_of(document)
            assert cluster["authOptions"]["mode"] == "token"
            assert cluster["rayVersion"] == pin


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_jobs_end_and_are_tried_again(overlay: str) -> None:
    jobs = {each["metadata"]["name"]: each for each in rendered(overlay) if each["kind"] == "RayJob"}
    for job in jobs.values():
        spec = job["spec"]
        assert spec["shutdownAfterJobFinishes"] is True
        assert spec["backoffLimit"] >= 1
        assert spec["ttlSecondsAfterFinished"] > 0
        assert spec["activeDeadlineSeconds"] > spec["ttlSecondsAfterFinished"]
    assert cluster_of(jobs["precompute"])["enableInTreeAutoscaling"] is True
    assert "enableInTreeAutoscaling" not in cluster_of(jobs["train"])
    assert jobs["train"]["metadata"]["labels"]["ray.io/gang-scheduling-enabled"] == "true"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_there_is_room_for_what_the_recipe_asks_for(overlay: str, tmp_path: Path) -> None:
    documents = rendered(overlay)
    recipe = load_recipe(recipe_of(documents, tmp_path))
    jobs = {each["metadata"]["name"]: each for each in documents if each["kind"] == "RayJob"}
    (workers,) = cluster_of(jobs["precompute"])["workerGroupSpecs"]
    (ranks,) = cluster_of(jobs["train"])["workerGroupSpecs"]
    offers = [room(group) for group in (workers, ranks)]
    assert workers["minReplicas"] == 0
    assert ranks["replicas"] == ranks["minReplicas"] == ranks["maxReplicas"]
    if overlay == "gpu":
        assert (
            workers["maxReplicas"] * offers[0]["gpus"] == recipe.cache.workers * recipe.cache.gpus_per_worker
        )
        assert ranks["replicas"] * offers[1]["gpus"] == recipe.train.workers
    assert workers["maxReplicas"] * offers[0]["cpus"] >= recipe.cache.workers * recipe.cache.cpus_per_worker
    assert ranks["replicas"] * offers[1]["cpus"] >= recipe.train.workers * recipe.train.threads
    assert_all_is_shared(recipe, overlay)


def room(group: dict[str, Any]) -> dict[str, int]:
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return {"cpus": int(limits["cpu"]), "gpus": int(limits.get("nvidia.com/gpu", 0))}


def assert_all_is_shared(recipe: Recipe, overlay: str) -> None:
    """Pods share no folder: what one leaves for another lies in the bucket, or is made anew in each."""
    assert recipe.cache.url.startswith("s3://")
    assert recipe.storage_url.startswith("s3://")
    if overlay == "gpu":
        assert recipe.data.root.startswith("s3://")
    else:
        assert recipe.scenes is not None and recipe.miniature is not None


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_entrypoints_run(overlay: str, tmp_path: Path) -> None:
    documents = rendered(overlay)
    recipe = recipe_of(documents, tmp_path)
    lines = [each["spec"]["entrypoint"] for each in documents if each["kind"] == "RayJob"]
    for _, pod in pods(documents):
        for container in pod.get("initContainers", ()):
            assert container["command"] == ["/bin/bash", "-c"]
            lines += container["args"]
    commands = {command.strip() for line in lines for command in line.split("&&")}
    assert {f"python -m jobs.{name} /etc/ldznet/recipe.yaml" for name in ("precompute", "train")} <= commands
    assert len(commands) == (2 if overlay == "gpu" else 4)
    for command in sorted(commands):
        program, *words = shlex.split(command.replace("/etc/ldznet/recipe.yaml", shlex.quote(str(recipe))))
        assert program == "python"
        done = subprocess.run(
            [sys.executable, *words, "--dry-run"],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert load_recipe(recipe).digest() in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
