"""One cached sample: its tensors, its mask and what is known of it, as the files of a shard and back.

In the tar, readable by stock `webdataset`: `KEY.json`, `KEY.mask.png`, `KEY.safetensors` and, where the
specification keeps them, `KEY.image.png`. No pickle anywhere.
"""

import io
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor

from ldznet.errors import UserError
from pipeline.cache.spec import Dtype

TORCH_DTYPES: Final[dict[Dtype, torch.dtype]] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_TAR_BLOCK = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One member of a cache, ready for the networks."""

    key: str
    latents: Tensor  # 4,h,w
    context: Tensor  # 77,D
    features: dict[int, Tensor]  # block -> C,h_b,w_b
    mask: NDArray[np.bool_]  # H,W
    facts: dict[str, Any] = field(default_factory=dict)  # phrase, prompt, timestep, view, ids
    image: NDArray[np.uint8] | None = None  # H,W,3


def encode_entry(entry: Entry, *, stored_dtype: Dtype) -> dict[str, bytes]:
    """The entry's files by extension. Equal entries give equal bytes.

    Raises:
        UserError: a value is too large for the stored type.
        ArithmeticError: a value is not finite to begin with.
    """
    dtype = TORCH_DTYPES[stored_dtype]
    tensors = {"latents": entry.latents, "context": entry.context}
    tensors |= {f"block_{block}": tensor for block, tensor in entry.features.items()}
    stored = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    for name, tensor in stored.items():
        if bool(torch.isfinite(tensor).all()):
            continue
        if not bool(torch.isfinite(tensors[name]).all()):
            raise ArithmeticError(f"{name} of sample {entry.key} is not finite as computed")
        raise UserError(
            f"{name} of sample {entry.key} is too large for {stored_dtype}: set features.stored_dtype=bf16 or fp32"
        )
    files = {
        "json": json.dumps(entry.facts, sort_keys=True, separators=(",", ":")).encode(),
        "mask.png": encode_png(entry.mask),
        "safetensors": save(stored),
    }
    if entry.image is not None:
        files["image.png"] = encode_png(entry.image)
    return files


def decode_entry(key: str, files: Mapping[str, bytes | memoryview]) -> Entry:
    """The entry again, tensors in their stored type."""
    tensors = load(bytes(files["safetensors"]))
    features = {
        int(name.removeprefix("block_")): tensor
        for name, tensor in tensors.items()
        if name.startswith("block_")
    }
    image = files.get("image.png")
    return Entry(
        key=key,
        latents=tensors["latents"],
        context=tensors["context"],
        features=dict(sorted(features.items())),
        mask=decode_png(files["mask.png"]) > 0,
        facts=json.loads(bytes(files["json"])),
        image=None if image is None else decode_png(image),
    )


def split_tar(data: bytes | memoryview, *, key: str) -> dict[str, memoryview]:
    """The files of one sample's stretch of a tar, by extension, without copying.

    Our shards are plain USTAR of regular files, each sample's named by its key; anything else is not ours.

    Raises:
        ValueError: says what is not ours.
    """
    view = memoryview(data)
    files: dict[str, memoryview] = {}
    position = 0
    while position + _TAR_BLOCK <= len(view):
        name, size = _parse_header(view[position : position + _TAR_BLOCK])
        start = position + _TAR_BLOCK
        if start + size > len(view):
            raise ValueError(f"the file {name!r} ends after its sample does")
        stem, _, extension = name.partition(".")
        if stem != key or not extension or extension in files:
            raise ValueError(f"the file {name!r} has no place in the sample {key}")
        files[extension] = view[start : start + size]
        position = start + (size + _TAR_BLOCK - 1) // _TAR_BLOCK * _TAR_BLOCK
    return files


def _parse_header(header: memoryview) -> tuple[str, int]:
    raw_name, raw_size, kind, magic = struct.unpack_from("100s24x12s20xc100x5s", header)
    if magic != b"ustar" or kind != b"0":
        raise ValueError("not a regular USTAR file header")
    size = int(raw_size.rstrip(b"\0 ") or b"0", 8)
    if size < 0:
        raise ValueError("a file of negative size")
    return raw_name.rstrip(b"\0").decode("ascii"), size


def encode_png(pixels: NDArray[np.bool_] | NDArray[np.uint8]) -> bytes:
    """A mask `H,W` (bool) or an image `H,W,3` (uint8) as PNG."""
    buffer = io.BytesIO()
    array = pixels.astype(np.uint8) * 255 if pixels.dtype == np.bool_ else pixels
    Image.fromarray(array).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def decode_png(data: bytes | memoryview) -> NDArray[np.uint8]:
    """Pixels of a PNG from a shard: `H,W` or `H,W,3`."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.asarray(image)
