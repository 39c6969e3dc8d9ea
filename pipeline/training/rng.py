"""The state of every random generator of a rank, to and from a file without pickle."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

RNG_FILE = "rng.safetensors"


def rng_state() -> bytes:
    """The states of Python's, NumPy's and torch's generators (CPU and this rank's GPU), as the file holds them."""
    from safetensors.torch import save

    states: dict[str, Tensor] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return save(states, metadata={"python": json.dumps(random.getstate()), "numpy": _numpy_state()})


def load_rng(folder: Path) -> None:
    """Set every generator to what `rng_state` gave, from its file."""
    from safetensors import safe_open

    with safe_open(folder / RNG_FILE, "pt") as states:
        metadata = states.metadata()
        torch.set_rng_state(states.get_tensor("torch"))
        if torch.cuda.is_available() and "cuda" in states.keys():  # noqa: SIM118 - no mapping
            torch.cuda.set_rng_state(states.get_tensor("cuda"))
    version, internal, gauss = json.loads(metadata["python"])
    random.setstate((version, tuple(internal), gauss))
    numpy_state: dict[str, Any] = json.loads(metadata["numpy"])
    numpy_state["state"]["key"] = np.array(numpy_state["state"]["key"], np.uint32)
    np.random.set_state(numpy_state)  # noqa: NPY002 - the global generator is what is restored


def _numpy_state() -> str:
    state: dict[str, Any] = np.random.get_state(legacy=False)  # noqa: NPY002 - as above
    state["state"]["key"] = state["state"]["key"].tolist()
    return json.dumps(state)
