"""A run's parameters: the leaves of a recipe, as MLflow can show and filter by them."""

import json
import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

# MLflow's own limits
_PARAMS_A_REQUEST = 100
_LONGEST_VALUE = 6000  # characters
_NOT_IN_NAMES = re.compile(r"[^\w. :-]")  # a slash it takes in a tidy path only


def accepted_name(text: str) -> str:
    """A name as MLflow takes it: characters that it refuses are told by their codes, `+` as `-x2b-`."""
    return _NOT_IN_NAMES.sub(lambda refused: f"-x{ord(refused[0]):x}-", text)


def leaves(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Dotted keys, as MLflow takes them, and values as text; a list is one leaf, as JSON."""
    if isinstance(value, Mapping):
        return [
            leaf
            for key, inner in value.items()
            for leaf in leaves(inner, accepted_name(f"{prefix}.{key}" if prefix else str(key)))
        ]
    text = json.dumps(value) if isinstance(value, (list, bool)) or value is None else str(value)
    return [(prefix, text[:_LONGEST_VALUE])] if prefix else []


def log_params(client: "MlflowClient", run_id: str, params: Mapping[str, str]) -> None:
    """Log what the run lacks. MLflow changes no parameter: those that differ are named and left."""
    from mlflow.entities import Param

    if not params:
        return
    there = client.get_run(run_id).data.params
    changed = sorted(key for key, value in params.items() if key in there and there[key] != value)
    if changed:
        log.warning(
            "the run keeps its first values of %s; recipe.yaml holds the new ones", ", ".join(changed)
        )
    fresh = [Param(key, value) for key, value in params.items() if key not in there]
    for start in range(0, len(fresh), _PARAMS_A_REQUEST):
        client.log_batch(run_id, params=fresh[start : start + _PARAMS_A_REQUEST])
