"""Renders a kustomization as far as ours use it: resources, components, images, namespace, JSON6902 patches.

An implementation of its own, as kustomize is not installed everywhere; where `kubectl` is, a test compares the two.
"""

import copy
import re
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]
_CLUSTER_WIDE = {"Namespace", "PriorityClass"}
_KNOWN = {"apiVersion", "kind", "namespace", "resources", "components", "images", "patches"}


def render(folder: Path, into: list[Document] | None = None) -> list[Document]:
    """All documents of the kustomization in a folder; a component changes those given."""
    content = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(content) <= _KNOWN, f"{folder}: {set(content) - _KNOWN} is not rendered here"
    documents = into if into is not None else []
    for name in content.get("resources", ()):
        path = folder / name
        documents += render(path) if path.is_dir() else documents_of(path)
    for name in content.get("components", ()):
        render(folder / name, documents)
    for patch in content.get("patches", ()):
        _patch(documents, patch, folder)
    for image in content.get("images", ()):
        for document in documents:
            _set_image(document, image)
    if "namespace" in content:
        for document in documents:
            if document["kind"] not in _CLUSTER_WIDE:
                document["metadata"]["namespace"] = content["namespace"]
    return documents


def _patch(documents: list[Document], patch: dict[str, Any], folder: Path) -> None:
    assert set(patch) == {"path", "target"}, "patches are files with a target"
    chosen = [document for document in documents if _is_target(document, patch["target"])]
    assert chosen, f"{patch['path']} patches nothing"
    for document in chosen:
        for operation in yaml.safe_load((folder / patch["path"]).read_text()):
            apply(document, operation)


def documents_of(path: Path) -> list[Document]:
    """The documents of a file, with nothing shared among them (YAML's aliases are)."""
    return [
        copy.deepcopy(_unshared(document)) for document in yaml.safe_load_all(path.read_text()) if document
    ]


def apply(document: Document, operation: dict[str, Any]) -> None:
    """One operation of JSON Patch (RFC 6902), as strict as it says: what is replaced or removed must be there."""
    parent, last = _resolve(document, operation["path"])
    match operation["op"]:
        case "add":
            _put(parent, last, _unshared(operation["value"]))
        case "replace":
            assert _has(parent, last), f"nothing to replace at {operation['path']}"
            parent[last] = _unshared(operation["value"])
        case "remove":
            assert _has(parent, last), f"nothing to remove at {operation['path']}"
            del parent[last]
        case "copy":
            source, name = _resolve(document, operation["from"])
            _put(parent, last, _unshared(source[name]))
        case other:
            raise AssertionError(f"operation {other!r} is not applied here")


def _put(parent: Any, last: Any, value: Any) -> None:
    if isinstance(parent, list):
        parent.insert(len(parent) if last == "-" else last, value)
    else:
        parent[last] = value


def _resolve(document: Document, pointer: str) -> tuple[Any, Any]:
    first, *parts = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")]
    assert first == "" and parts, f"{pointer!r} is no pointer into a document"
    at: Any = document
    for part in parts[:-1]:
        at = at[_key(at, part)]
    return at, _key(at, parts[-1])


def _key(container: Any, part: str) -> Any:
    return int(part) if isinstance(container, list) and part != "-" else part


def _has(parent: Any, last: Any) -> bool:
    return last < len(parent) if isinstance(parent, list) else last in parent


def _is_target(document: Document, target: dict[str, str]) -> bool:
    group, _, version = document["apiVersion"].rpartition("/")
    facts = {
        "group": group,
        "version": version,
        "kind": document["kind"],
        "name": document["metadata"]["name"],
    }
    return all(re.fullmatch(wanted, facts[key]) for key, wanted in target.items())


def _set_image(node: Any, image: dict[str, str]) -> None:
    if isinstance(node, list):
        for item in node:
            _set_image(item, image)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in {"containers", "initContainers"} and isinstance(value, list):
                for container in value:
                    name, _, tag = container["image"].rpartition(":")
                    if name == image["name"]:
                        container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}"
            else:
                _set_image(value, image)


def _unshared(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _unshared(value) for key, value in node.items()}
    return [_unshared(item) for item in node] if isinstance(node, list) else node
