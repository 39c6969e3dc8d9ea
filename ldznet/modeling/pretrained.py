"""A network on disk: `config.json` with our format marker, and `model.safetensors`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldznet.errors import UserError
from ldznet.modeling.config import NetworkConfig

FORMAT = "ldznet-network"
FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def save_network(folder: Path, config: NetworkConfig, state: Mapping[str, Tensor]) -> Path:
    """Write weights, then the configuration; each file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    partial = folder / f".{WEIGHTS_FILE}.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(folder / WEIGHTS_FILE)
    document = {"format": FORMAT, "format_version": FORMAT_VERSION, "network": config.model_dump(mode="json")}
    partial = folder / f".{CONFIG_FILE}.partial"
    partial.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(folder / CONFIG_FILE)
    return folder


def read_network_config(folder: Path) -> NetworkConfig:
    """The configuration of a saved network.

    Raises:
        UserError: the folder is missing, not ours, of a later version, or damaged.
    """
    path = folder / CONFIG_FILE
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} is no model folder of ours: it has no {CONFIG_FILE}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error})") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UserError(f'{folder} is no model folder of ours: {CONFIG_FILE} lacks "format": "{FORMAT}"')
    if document.get("format_version") != FORMAT_VERSION:
        version = document.get("format_version")
        raise UserError(f"{folder} has format version {version}; this program reads version {FORMAT_VERSION}")
    try:
        return NetworkConfig.model_validate(document.get("network"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: network.{where}: {first['msg']}") from None


def load_weights(network: nn.Module, folder: Path, *, device: torch.device, dtype: torch.dtype) -> None:
    """Fill a network built on `meta` from a folder's weights.

    Raises:
        UserError: the weights are missing, damaged, or do not fit.
    """
    path = folder / WEIGHTS_FILE
    try:
        state = load_file(path, device=str(device))
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    check_tensors(network.state_dict(), state, where=os.fspath(path))
    network.load_state_dict({name: tensor.to(dtype) for name, tensor in state.items()}, assign=True)


def check_tensors(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], *, where: str) -> None:
    """Compare names and shapes.

    Raises:
        UserError: names the missing, extra or misshaped tensors (the first few, and how many).
    """
    shared = [name for name in expected if name in given]
    wrong = [
        f"{name} is {tuple(given[name].shape)}, must be {tuple(expected[name].shape)}"
        for name in shared
        if given[name].shape != expected[name].shape
    ]
    faults = {
        "missing": [name for name in expected if name not in given],
        "extra": [name for name in given if name not in expected],
        "of wrong shape": wrong,
    }
    told = [_tell(kind, names) for kind, names in faults.items() if names]
    if told:
        raise UserError(f"{where}: {'; '.join(told)}")


def _tell(kind: str, names: list[str], *, most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} {kind} ({', '.join(names[:most])}{rest})"
