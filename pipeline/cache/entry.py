"""One cached sample: its tensors, its mask and what is known of it, as the files of a shard and back.

In the tar, readable by stock `webdataset`: `KEY.json`, `KEY.mask.png`, `KEY.safetensors` and, where the
specification keeps them, `KEY.image.png`. No pickle anywhere. A column shard holds `KEY.safetensors` alone.

Tensors: `latents`, `context`, `block_N` and, where block features are quantised, `block_N.scale`.
"""

import io
import json
import math
import re
import struct
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from ldznet.errors import UserError
from pipeline.cache.mask_png import read_mask_png, write_mask_png
from pipeline.cache.spec import QUANTISED, Dtype
from pipeline.cache.stored_type import (
    QUANTISED_DTYPES,
    SCALE_DTYPE,
    TORCH_DTYPES,
    dequantise,
    group_size,
    plain_dtype,
    quantise,
    scale_count,
)
from pipeline.cache.tensor_file import TensorLayout, read_tensors

EXTENSIONS: Final = frozenset({"json", "mask.png", "image.png", "safetensors"})
_BLOCK_NAME: Final = re.compile(r"block_([1-9]\d?)(\.scale)?")
_TAR_BLOCK: Final = 512
_MOST_FACTS_BYTES: Final = 2**20
_MOST_PIXELS: Final = 4096**2  # the largest view
# What Pillow raises on bytes that are no sound PNG.
_PNG_DAMAGE: Final = (OSError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)

Files = Mapping[str, bytes | memoryview]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One member of a cache. Block features may be quantised: then `scales` has theirs."""

    key: str
    latents: Tensor  # 4,h,w
    context: Tensor  # 77,D
    features: dict[int, Tensor]  # block -> C,h_b,w_b
    scales: dict[int, Tensor] = field(default_factory=dict)  # block -> G, fp16; one for neighbouring channels
    mask: NDArray[np.bool_]  # H,W
    facts: dict[str, Any] = field(default_factory=dict)  # phrase, prompt, timestep, view, ids
    image: NDArray[np.uint8] | None = None  # H,W,3


@dataclass(frozen=True, kw_only=True, slots=True)
class EntryRest:
    """What an entry has beside its tensors."""

    mask: NDArray[np.bool_]  # H,W
    facts: dict[str, Any]
    image: NDArray[np.uint8] | None  # H,W,3


def encode_entry(entry: Entry, *, stored_dtype: Dtype, scale_group: int = 1) -> dict[str, bytes]:
    """The entry's files by extension. Equal entries give equal bytes.

    Args:
        entry: what to store; quantised features are dequantised first.
        stored_dtype: of block features; latents and context too, but fp16 beside int8 and fp8.
        scale_group: neighbouring channels that share a scale, for int8 and fp8.

    Raises:
        UserError: a value is too large for the stored type.
        ArithmeticError: a value is not finite to begin with.
    """
    plain = plain_dtype(stored_dtype)
    stored = {
        "latents": _stored(entry.latents, "latents", entry.key, plain),
        "context": _stored(entry.context, "context", entry.key, plain),
        **_encode_features(entry, stored_dtype=stored_dtype, scale_group=scale_group),
    }
    files = {
        "json": json.dumps(entry.facts, sort_keys=True, separators=(",", ":")).encode(),
        "mask.png": encode_png(entry.mask),
        "safetensors": save(stored),
    }
    if entry.image is not None:
        files["image.png"] = encode_png(entry.image)
    return files


def encode_columns(entry: Entry, *, stored_dtype: Dtype, scale_group: int = 1) -> dict[str, bytes]:
    """The entry's block features alone, as the one file of a column shard. Errors as `encode_entry`'s."""
    return {"safetensors": save(_encode_features(entry, stored_dtype=stored_dtype, scale_group=scale_group))}


def _encode_features(entry: Entry, *, stored_dtype: Dtype, scale_group: int) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    for block, tensor in entry.features.items():
        name, values = f"block_{block}", tensor
        if block in entry.scales:
            values = dequantise(tensor, entry.scales[block])
        if stored_dtype not in QUANTISED:
            stored[name] = _stored(values, name, entry.key, stored_dtype)
            continue
        _check_finite(values, name, entry.key)
        try:
            stored[name], stored[f"{name}.scale"] = quantise(
                values, stored_dtype=stored_dtype, scale_group=scale_group
            )
        except OverflowError as error:
            raise _too_large(name, entry.key, stored_dtype) from error
    return stored


def _stored(tensor: Tensor, name: str, key: str, stored_dtype: Dtype) -> Tensor:
    stored = tensor.detach().to("cpu", TORCH_DTYPES[stored_dtype]).contiguous()
    # Fourteen times as quick as isfinite; one NaN makes both ends NaN.
    if stored.numel() and not all(math.isfinite(end) for end in torch.aminmax(stored)):
        _check_finite(tensor, name, key)
        raise _too_large(name, key, stored_dtype)
    return stored


def _check_finite(tensor: Tensor, name: str, key: str) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise ArithmeticError(f"{name} of sample {key} is not finite as computed")


def _too_large(name: str, key: str, stored_dtype: Dtype) -> UserError:
    return UserError(
        f"{name} of sample {key} is too large for {stored_dtype}: set features.stored_dtype=bf16 or fp32"
    )


def decode_entry(key: str, files: Files, *, blocks: Collection[int] | None = None) -> Entry:
    """The entry again, tensors in their stored type.

    Args:
        key: of the sample.
        files: by extension.
        blocks: whose features to read, where they are there: others may lie in a column shard. None reads all.

    Raises:
        ValueError: says what is no sample of ours.
    """
    missing = sorted({"json", "mask.png", "safetensors"} - set(files))
    if missing:
        raise ValueError(f"the sample {key} has no file {missing[0]!r}")
    plain = frozenset({"latents", "context"})
    tensors = read_tensors(
        files["safetensors"], wanted=lambda name: name in plain or _is_wanted(name, blocks)
    )
    latents, context = tensors.pop("latents", None), tensors.pop("context", None)
    if latents is None or context is None or latents.ndim != 3 or context.ndim != 2:
        raise ValueError(f"the sample {key} lacks latents of 3 or a context of 2 dimensions")
    features, scales = _features_of(tensors)
    rest = decode_rest(files)
    return Entry(
        key=key,
        latents=latents,
        context=context,
        features=features,
        scales=scales,
        mask=rest.mask,
        facts=rest.facts,
        image=rest.image,
    )


def decode_rest(files: Files) -> EntryRest:
    """What a sample has beside its tensors; its files are known to be there.

    Raises:
        ValueError: says what is no sample of ours.
    """
    image = files.get("image.png")
    return EntryRest(
        mask=decode_png(files["mask.png"], mode="1"),
        facts=_decode_facts(files["json"]),
        image=None if image is None else decode_png(image, mode="RGB"),
    )


def decode_columns(
    files: Files, *, blocks: Collection[int] | None = None
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Block features and scales of a column shard's sample, in their stored type; `blocks` as in `decode_entry`.

    Raises:
        ValueError: says what is no sample of ours.
    """
    if "safetensors" not in files:
        raise ValueError("a sample of a column shard has no file 'safetensors'")
    return _features_of(read_tensors(files["safetensors"], wanted=lambda name: _is_wanted(name, blocks)))


def _is_wanted(name: str, blocks: Collection[int] | None) -> bool:
    match = _BLOCK_NAME.fullmatch(name)
    return match is None or blocks is None or int(match[1]) in blocks


def _features_of(tensors: Mapping[str, Tensor]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Sort tensors into features and scales by block, and see that they fit each other."""
    features: dict[int, Tensor] = {}
    scales: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        match = _BLOCK_NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"the tensor {name!r} is none of a sample's")
        (features if match[2] is None else scales)[int(match[1])] = tensor
    for block in sorted({*features, *scales}):
        _check_block(block, features.get(block), scales.get(block))
    return dict(sorted(features.items())), dict(sorted(scales.items()))


def _check_block(block: int, values: Tensor | None, scale: Tensor | None) -> None:
    if values is None or values.ndim != 3:
        raise ValueError(f"block {block} has no features of 3 dimensions")
    if (values.dtype in QUANTISED_DTYPES) != (scale is not None):
        raise ValueError(
            f"block {block} is {values.dtype} {'with' if scale is not None else 'without'} scales"
        )
    if scale is None:
        return
    channels, count = values.shape[0], scale.numel()
    if (
        scale.ndim != 1
        or scale.dtype != SCALE_DTYPE
        or scale_count(channels, group_size(channels, count)) != count
    ):
        raise ValueError(
            f"block {block} has scales {tuple(scale.shape)} of {scale.dtype} for {channels} channels"
        )


def _decode_facts(data: bytes | memoryview) -> dict[str, Any]:
    if len(data) > _MOST_FACTS_BYTES:
        raise ValueError(f"a sample's JSON of {len(data)} bytes")
    try:
        facts = json.loads(bytes(data))
    except RecursionError as error:
        raise ValueError("a sample's JSON is nested too deep") from error
    if not isinstance(facts, dict):
        raise ValueError("a sample's JSON is no object")  # noqa: TRY004 - the data is wrong, no caller's type
    return facts


def split_tar(data: bytes | memoryview, *, key: str) -> dict[str, memoryview]:
    """The files of one sample's stretch of a tar, by extension, without copying.

    Our shards are plain USTAR of regular files, each sample's named by its key and of few kinds; anything else is
    not ours: links, folders, other names, extensions that some reader might unpickle.

    Raises:
        ValueError: says what is not ours.
    """
    view = memoryview(data)
    return {extension: view[start:stop] for extension, start, stop in _members(view, key, beyond=0)}


def split_head(head: memoryview, *, key: str, tensors: TensorLayout) -> dict[str, memoryview] | None:
    """As `split_tar`, of a stretch whose last file is of that layout and whose content lies elsewhere.

    Args:
        head: the stretch up to that content.
        key: of the sample.
        tensors: the layout.

    Returns:
        The other files, whole; None where the last file is another.

    Raises:
        ValueError: says what is not ours.
    """
    members = list(_members(head, key, beyond=tail_bytes(tensors)))
    last, start, stop = members[-1] if members else ("", 0, 0)
    if last != "safetensors" or stop - start != tensors.file_bytes or head[start:] != tensors.header:
        return None
    return {extension: head[start:stop] for extension, start, stop in members[:-1]}


def tail_bytes(tensors: TensorLayout) -> int:
    """Bytes of a sample's stretch from its tensors' content on, which come last in it: the tar pads a file."""
    return tensors.content_bytes + -tensors.file_bytes % _TAR_BLOCK


def _members(view: memoryview, key: str, *, beyond: int) -> Iterator[tuple[str, int, int]]:
    """Extension, start and end of each file of a stretch, of which `beyond` bytes at its end are not in the view."""
    position, end = 0, len(view) + beyond
    seen = set()
    while position < end:
        name, size = _parse_header(view[position : position + _TAR_BLOCK])
        start = position + _TAR_BLOCK
        if start + size > end:
            raise ValueError(f"the file {name!r} ends after its sample does")
        stem, _, extension = name.partition(".")
        if stem != key or extension not in EXTENSIONS or extension in seen:
            raise ValueError(f"the file {name!r} has no place in the sample {key}")
        seen.add(extension)
        yield extension, start, start + size
        position = start + -(-size // _TAR_BLOCK) * _TAR_BLOCK
    if position != end:
        raise ValueError(f"the sample {key} ends within a block of the tar")


def _parse_header(header: memoryview) -> tuple[str, int]:
    """Name and size of a regular file whose USTAR header is as stock tools would read it."""
    if len(header) < _TAR_BLOCK:
        raise ValueError("not a whole USTAR header")
    name, size, checksum, kind, link, magic, prefix = struct.unpack_from(
        "100s24x12s12x8sc100s8s80x155s", header
    )
    if magic != b"ustar\x0000" or kind != b"0" or any(link) or any(prefix):
        raise ValueError("not a regular USTAR file header with a short name")
    if _octal(checksum) != sum(header) - sum(checksum) + 8 * ord(" "):
        raise ValueError("a USTAR header with a wrong checksum")
    return name.rstrip(b"\0").decode("ascii"), _octal(size)


def _octal(raw: bytes) -> int:
    digits = raw.rstrip(b"\0 ")
    if not digits or digits.strip(b"01234567"):
        raise ValueError(f"{raw!r} in a USTAR header is no octal number")
    return int(digits, 8)


def encode_png(pixels: NDArray[np.bool_] | NDArray[np.uint8]) -> bytes:
    """A mask `H,W` (bool), one bit a pixel, or an image `H,W,3` (uint8) as PNG."""
    if pixels.dtype == np.bool_:
        return write_mask_png(pixels.astype(np.bool_, copy=False))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def decode_png(data: bytes | memoryview, *, mode: Literal["1", "RGB"]) -> NDArray[Any]:
    """Pixels of a PNG from a shard. Nothing is expanded before its size is known to be a view's.

    Args:
        data: the file.
        mode: as Pillow calls it. `1`: a mask, `H,W` of bool; `RGB`: an image, `H,W,3` of uint8.

    Raises:
        ValueError: no PNG, damaged, larger than any view, or of another mode.
    """
    if mode == "1" and (mask := read_mask_png(data, most_pixels=_MOST_PIXELS)) is not None:
        return mask
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise ValueError(f"a PNG of {image.width} x {image.height} is no view")
            if image.mode != mode:
                raise ValueError(f"a PNG of mode {image.mode} is not of mode {mode}")
            pixels = np.array(image)
            # Pillow's bools are bytes of 0 and 255, of which whoever takes the bytes (torch) makes 255.
            return pixels.view(np.uint8) != 0 if mode == "1" else pixels
    except _PNG_DAMAGE as error:
        raise ValueError(f"not a sound PNG: {error}") from error
