"""A frozen LDM on disk in the diffusers layout: checked before loading, and told apart by digest."""

import hashlib
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ldznet.builtin_models import builtin_folder
from ldznet.errors import UserError

Part = Literal["unet", "vae", "text_encoder", "tokenizer", "scheduler"]
PARTS: tuple[Part, ...] = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")

_WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
_CONFIG = {"scheduler": "scheduler_config.json"}
_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
# What a library writes into a configuration about itself or about where the file lay.
_INCIDENTAL_KEYS = ("_name_or_path", "_diffusers_version", "transformers_version", "name_or_path")


def resolve_ldm(folder_or_hub_id: str | Path) -> Path:
    """The checked folder of a frozen LDM: local, `builtin:NAME`, or a hub id's (`owner/name[@revision]`) snapshot.

    Raises:
        UserError: neither a folder nor a hub id that can be reached, or a part is missing or unsafe.
    """
    folder = builtin_folder(str(folder_or_hub_id)) or Path(folder_or_hub_id).expanduser()
    if not folder.is_dir():
        patterns = [f"{part}/{kind}" for part in PARTS for kind in ("*.safetensors", "*.json", "*.txt")]
        folder = download_snapshot(str(folder_or_hub_id), patterns=patterns, what="LDM")
    check_ldm_folder(folder)
    return folder


def check_ldm_folder(folder: Path) -> None:
    """Check that every part is there, with weights as safetensors.

    Raises:
        UserError: names the part that is missing or has pickle weights only.
    """
    for part in PARTS:
        if not (folder / part).is_dir():
            raise UserError(f"LDM folder {folder}: the part '{part}' is missing; it needs {', '.join(PARTS)}")
        if part == "tokenizer":
            _check_tokenizer(folder / part)
        else:
            read_part_config(folder, part)
        if part in _WEIGHTS:
            weight_files(folder, part)


def _check_tokenizer(folder: Path) -> None:
    has_vocabulary = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    if not has_vocabulary and not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"LDM folder {folder.parent}: 'tokenizer' lacks tokenizer.json (or vocab.json and merges.txt)"
        )


def read_part_config(folder: Path, part: Part) -> dict[str, Any]:
    """One part's configuration, as its JSON file has it."""
    name = _CONFIG.get(part, "config.json")
    try:
        config = json.loads((folder / part / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"LDM folder {folder}: '{part}/{name}' is missing") from None
    except ValueError as error:
        raise UserError(f"LDM folder {folder}: '{part}/{name}' is not JSON ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"LDM folder {folder}: '{part}/{name}' holds no JSON object")
    return config


def weight_files(folder: Path, part: Part) -> tuple[Path, ...]:
    """The safetensors files that hold one part's weights: a single file, or the shards that its index names.

    Raises:
        UserError: there are none; says so when only pickle weights are there, and how to convert them.
    """
    place, stem = folder / part, _WEIGHTS[part]
    single, index = place / f"{stem}.safetensors", place / f"{stem}.safetensors.index.json"
    if single.is_file():
        return (single,)
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [name for name in names if not (place / name).is_file()]
        if missing:
            raise UserError(
                f"LDM folder {folder}: '{part}/{missing[0]}' is missing, which {index.name} names"
            )
        return tuple(place / name for name in names)
    pickles = sorted(path.name for pattern in _PICKLES for path in place.glob(pattern))
    if pickles:
        raise UserError(
            f"LDM folder {folder}: '{part}' has pickle weights only ({pickles[0]}), which are never loaded;"
            " where you trust them, convert with StableDiffusionPipeline.from_pretrained(OLD).save_pretrained(NEW)"
        )
    raise UserError(f"LDM folder {folder}: '{part}/{single.name}' is missing")


def download_snapshot(hub_id: str, *, patterns: list[str], what: str) -> Path:
    """The local copy of a hub id's (`owner/name[@revision]`) files that fit the patterns.

    Raises:
        UserError: the text is neither a folder nor a hub id, or the hub cannot give it.
    """
    if not _HUB_ID.fullmatch(hub_id):
        raise UserError(f"{what} {hub_id}: no such folder (and it is no hub id of the form owner/name)")
    from httpx2 import HTTPError  # what huggingface_hub speaks with; a refusing proxy surfaces as it is
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    name, _, revision = hub_id.partition("@")
    unused = ["*.fp16.*", "*.non_ema.*"]
    try:
        folder = snapshot_download(
            name, revision=revision or None, allow_patterns=patterns, ignore_patterns=unused
        )
    except (OSError, HTTPError, HFValidationError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{what} {hub_id}: no such folder, and the hub could not give it ({reason}); give a local folder"
        ) from None
    return Path(folder)


def ldm_digest(folder: str | Path) -> str:
    """SHA-256 (hex) of a frozen LDM: its parts' configurations and the contents of its weight files.

    Two folders with equal content have equal digests, wherever they lie; what a library writes into a
    configuration about itself (versions, the path it was loaded from) does not count.
    """
    total = hashlib.sha256()
    for name, digest in _part_digests(Path(folder)):
        total.update(f"{name}\0{digest}\n".encode())
    return total.hexdigest()


def _part_digests(folder: Path) -> Iterator[tuple[str, str]]:
    for part in PARTS:
        if part == "tokenizer":
            for name in TOKENIZER_FILES:
                path = folder / part / name
                if path.is_file():
                    yield f"{part}/{name}", _text_digest(path)
            continue
        yield f"{part}/config", _json_digest(read_part_config(folder, part))
        if part in _WEIGHTS:
            for path in weight_files(folder, part):
                status = path.stat()
                yield f"{part}/{path.name}", _weights_digest(path, status.st_size, status.st_mtime_ns)


def _text_digest(path: Path) -> str:
    if path.suffix == ".json":
        return _json_digest(json.loads(path.read_text(encoding="utf-8")))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _json_digest(value: Any) -> str:
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if key not in _INCIDENTAL_KEYS}
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=64)
def _weights_digest(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
