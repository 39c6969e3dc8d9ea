"""Checkpoints of other people's code, read without executing anything in them."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ldznet.errors import UserError

# Packages whose objects PyTorch Lightning checkpoints hold beside tensors. Theirs become inert placeholders;
# a name from anywhere else means a file that is not what it says, and is refused.
_HARMLESS = (
    "argparse",
    "collections",
    "datetime",
    "enum",
    "functools",
    "ldm",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "numpy",
    "omegaconf",
    "pathlib",
    "pytorch_lightning",
    "torchmetrics",
    "typing",
)
_HARMLESS_BUILTINS = ("int", "float", "str", "bool", "list", "dict", "tuple", "object", "slice")


class _Inert:
    """Stands for an object of a class that is not loaded: takes anything, does nothing."""

    def __new__(cls, *_arguments: Any, **_keywords: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *_arguments: Any, **_keywords: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


class _InertDict:
    """Stands for a dictionary of a class that is not loaded: becomes a plain one."""

    def __new__(cls, *_arguments: Any, **_keywords: Any) -> dict[Any, Any]:  # type: ignore[misc]
        return {}


def load_state_dict(checkpoint: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or a PyTorch (Lightning) checkpoint, on the CPU.

    Nothing in the file is executed: `weights_only=True`, and the classes that such files hold beside tensors
    become inert placeholders.

    Raises:
        UserError: the file is missing, is no checkpoint, or names something that no such checkpoint holds.
    """
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"checkpoint {path} is no safetensors file ({error})") from None
    loaded = _load_inert(path)
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path} holds no state dict")
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"checkpoint {path} holds no tensors")
    return tensors


def _load_inert(path: Path) -> Any:
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        placeholders: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
            (_placeholder(name, path), name) for name in unsafe
        ]
        with torch.serialization.safe_globals(placeholders):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UserError:
        raise
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, AttributeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"checkpoint {path} cannot be read safely ({reason})") from None


def _placeholder(name: str, path: Path) -> Callable[..., Any]:
    module, _, attribute = name.rpartition(".")
    if module == "builtins" or not module:
        harmless = attribute in _HARMLESS_BUILTINS
    else:
        harmless = module.split(".")[0] in _HARMLESS
    if not harmless:
        raise UserError(f"checkpoint {path} names {name}, which no checkpoint of this kind holds: refused")
    if attribute.lower().endswith("dict"):
        return _InertDict
    return type(attribute, (_Inert,), {})
