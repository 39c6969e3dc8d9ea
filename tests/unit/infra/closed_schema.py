"""Validates a document against a Kubernetes structural schema as the API server's strict mode does.

Unknown fields are errors wherever a schema names properties and does not say that others are kept; a required field
that has a default may be left out.
"""

import copy
from typing import Any

from jsonschema import Draft202012Validator

_OF_EVERY_OBJECT = {
    "apiVersion": {"type": "string"},
    "kind": {"type": "string"},
    "metadata": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
            "namespace": {"type": "string"},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
        },
        "required": ["name"],
    },
}


def problems(document: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """What is wrong with a document, one line each."""
    whole = copy.deepcopy(schema)
    whole["properties"] |= _OF_EVERY_OBJECT
    whole["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return problems_within(document, whole)


def problems_within(value: Any, schema: dict[str, Any]) -> list[str]:
    """The same for a part of a document, such as a pod's template."""
    validator = Draft202012Validator(closed(schema))
    errors = sorted(validator.iter_errors(value), key=lambda error: list(map(str, error.absolute_path)))
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


def closed(schema: Any) -> Any:
    """The schema with unknown fields refused, defaults as good as given, and Kubernetes' own words translated."""
    if not isinstance(schema, dict):
        return schema
    out = {
        key: _closed_part(key, value) for key, value in schema.items() if not key.startswith("x-kubernetes-")
    }
    if schema.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
        out["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    keeps = schema.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in out and "additionalProperties" not in out and not keeps:
        out["additionalProperties"] = False
    if "required" in out:
        known = out.get("properties", {})
        out["required"] = [name for name in out["required"] if "default" not in known.get(name, {})]
    if out.pop("nullable", False) and isinstance(out.get("type"), str):
        out["type"] = [out["type"], "null"]
    return out


def _closed_part(keyword: str, value: Any) -> Any:
    if keyword in {"properties", "patternProperties"}:
        return {name: closed(part) for name, part in value.items()}
    if keyword in {"anyOf", "oneOf", "allOf"}:
        return [closed(part) for part in value]
    return closed(value) if keyword in {"items", "additionalProperties", "not"} else value
