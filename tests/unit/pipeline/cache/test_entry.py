"""Entries: every stored type there and back, column shards, only the blocks asked for, and sizes."""

import dataclasses
import io
import math
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save
from unit.pipeline.cache.made_cache import make_entry

from ldznet.errors import UserError
from pipeline.cache.entry import (
    Entry,
    decode_columns,
    decode_entry,
    decode_png,
    encode_columns,
    encode_entry,
    encode_png,
)
from pipeline.cache.spec import Dtype
from pipeline.cache.stored_type import TORCH_DTYPES, dequantise, feature_bytes, quantise

# Stable Diffusion 1.4 at 384 px.
SD_BLOCKS = {6: (1280, 12, 12), 7: (1280, 6, 6), 8: (1280, 12, 12), 9: (1280, 12, 12), 10: (1280, 12, 12)}
SD_LATENTS, SD_CONTEXT = (4, 48, 48), (77, 768)


@pytest.fixture(scope="module")
def sd_entry() -> Entry:
    """Random numbers in the shapes of Stable Diffusion, with a mask of a person's size."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = np.mgrid[:384, :384]
    return Entry(
        key="0" * 32,
        latents=torch.randn(SD_LATENTS, generator=generator),
        context=torch.randn(SD_CONTEXT, generator=generator),
        features={block: torch.randn(shape, generator=generator) * 3 for block, shape in SD_BLOCKS.items()},
        mask=(rows - 200) ** 2 / 2 + (columns - 190) ** 2 < 90**2,
        facts={
            "phrase": "a man in a red shirt",
            "prompt": "a photo of a man in a red shirt.",
            "timestep": 400,
        },
    )


@pytest.mark.parametrize("stored", ["int8", "fp8"])
@pytest.mark.parametrize("scale_group", [1, 3, 100])
def test_quantised_entries_come_back(stored: Dtype, scale_group: int) -> None:
    entry = make_entry(3, with_image=True)
    files = encode_entry(entry, stored_dtype=stored, scale_group=scale_group)
    assert encode_entry(entry, stored_dtype=stored, scale_group=scale_group) == files
    back = decode_entry(entry.key, files)
    assert back.latents.dtype == back.context.dtype == torch.float16
    assert torch.equal(back.latents, entry.latents.half())
    assert list(back.features) == list(back.scales) == [6, 8]
    for block, tensor in entry.features.items():
        values, scales = quantise(tensor, stored_dtype=stored, scale_group=scale_group)
        assert back.features[block].dtype == TORCH_DTYPES[stored]
        assert torch.equal(back.features[block].float(), values.float())
        assert torch.equal(back.scales[block], scales) and scales.shape == (math.ceil(8 / scale_group),)
    # What was quantised once is stored as it is.
    assert encode_entry(back, stored_dtype=stored, scale_group=scale_group) == files
    # And reads in any other type as what it stands for.
    whole = decode_entry(entry.key, encode_entry(back, stored_dtype="fp32"))
    assert not whole.scales
    assert torch.equal(whole.features[6], dequantise(back.features[6], back.scales[6]))


def test_tensors_are_named_for_stock_readers() -> None:
    tensors = load(encode_entry(make_entry(0), stored_dtype="int8", scale_group=4)["safetensors"])
    assert set(tensors) == {"latents", "context", "block_6", "block_6.scale", "block_8", "block_8.scale"}
    assert tensors["block_6.scale"].shape == (2,) and tensors["block_6.scale"].dtype == torch.float16


@pytest.mark.parametrize("stored", ["fp32", "fp16", "int8", "fp8"])
def test_columns_are_the_entry_without_the_rest(stored: Dtype) -> None:
    entry = make_entry(5)
    files = encode_columns(entry, stored_dtype=stored)
    assert set(files) == {"safetensors"}
    features, scales = decode_columns(files)
    whole = decode_entry(entry.key, encode_entry(entry, stored_dtype=stored))
    for block in (6, 8):
        assert torch.equal(features[block].float(), whole.features[block].float())
    assert list(scales) == list(whole.scales)
    assert all(torch.equal(scales[block], whole.scales[block]) for block in scales)


@pytest.mark.parametrize("stored", ["fp16", "int8"])
def test_only_the_blocks_asked_for_are_read(stored: Dtype) -> None:
    files = encode_entry(make_entry(5), stored_dtype=stored)
    entry = decode_entry("k", files, blocks=(8,))
    assert list(entry.features) == [8]
    assert list(entry.scales) == ([8] if stored == "int8" else [])
    assert not decode_entry("k", files, blocks=()).features
    columns = encode_columns(make_entry(5), stored_dtype=stored)
    assert list(decode_columns(columns, blocks=(6,))[0]) == [6]
    # The other blocks of a sample may lie in a column shard: who joins them sees whether all are there.
    assert list(decode_entry("k", files, blocks=(6, 9)).features) == [6]
    assert decode_columns(columns, blocks=[9]) == ({}, {})


@pytest.mark.parametrize("stored", ["fp16", "int8", "fp8"])
def test_values_that_do_not_fit_are_told_from_broken_ones(stored: Dtype) -> None:
    for place in ("latents", "block_8"):
        entry = make_entry(1)
        tensor = entry.latents if place == "latents" else entry.features[8]
        tensor[0, 0, 0] = 1e9
        with pytest.raises(UserError, match=f"{place} of sample .* set features.stored_dtype=bf16 or fp32"):
            encode_entry(entry, stored_dtype=stored)
        for broken in (math.nan, math.inf, -math.inf):
            tensor[0, 0, 0] = broken
            with pytest.raises(ArithmeticError, match=f"{place} of sample .* not finite as computed"):
                encode_entry(entry, stored_dtype=stored)
    encoded = dataclasses.replace(make_entry(1), latents=torch.full((4, 2, 2), math.nan))
    assert encode_columns(encoded, stored_dtype=stored)  # no columns of it


def test_int8_is_half_of_fp16_at_sd_size(sd_entry: Entry) -> None:
    files = {stored: encode_entry(sd_entry, stored_dtype=stored) for stored in TORCH_DTYPES}
    sizes = {stored: sum(map(len, parts.values())) for stored, parts in files.items()}
    columns = {
        stored: len(encode_columns(sd_entry, stored_dtype=stored)["safetensors"]) for stored in TORCH_DTYPES
    }
    for quantised in ("int8", "fp8"):
        assert columns[quantised] <= 0.53 * columns["fp16"]
        assert sizes[quantised] <= 0.56 * sizes["fp16"]
    for stored in TORCH_DTYPES:
        counted = sum(feature_bytes(shape, stored_dtype=stored) for shape in SD_BLOCKS.values())
        assert counted < columns[stored] < counted + 2000
    assert 1.5e6 < columns["fp16"] < 1.6e6  # 783,360 numbers a sample


def damaged(**changed: Any) -> bytes:
    """A sound int8 sample's tensors, but for some; None takes one away."""
    tensors = load(encode_entry(make_entry(0), stored_dtype="int8", scale_group=3)["safetensors"])
    for name, tensor in changed.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    return save(tensors)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (damaged(latents=None), "lacks latents"),
        (damaged(context=torch.zeros(4)), "lacks latents"),
        (damaged(block_6=None), "block 6 has no features"),
        (damaged(block_6=torch.zeros(8, 4, dtype=torch.int8)), "block 6 has no features"),
        (damaged(block_6__scale=None), "block 6 is torch.int8 without scales"),
        (damaged(block_6=torch.zeros(8, 2, 2)), "block 6 is torch.float32 with scales"),
        (damaged(block_6__scale=torch.zeros(9).half()), "block 6 has scales"),
        (damaged(block_6__scale=torch.zeros(5).half()), "block 6 has scales"),  # no group makes 5 of 8
        (damaged(block_6__scale=torch.zeros(3)), "block 6 has scales"),
        (damaged(block_6__scale=torch.zeros(3, 1).half()), "block 6 has scales"),
        (damaged(block_0=torch.zeros(1, 1, 1)), "none of a sample's"),
        (damaged(optimiser=torch.zeros(1)), "none of a sample's"),
        (damaged(block_6__zero=torch.zeros(1)), "none of a sample's"),
        (b"\x80\x04\x95", "safetensors"),
    ],
)
def test_tensors_that_make_no_sample_are_refused(tensors: bytes, reason: str) -> None:
    files = {**encode_entry(make_entry(0), stored_dtype="int8"), "safetensors": tensors}
    with pytest.raises(ValueError, match=reason):
        decode_entry("k", files)


def png_of(width: int, height: int, *, depth: int = 8, kind: int = 0, data: bytes = b"\0\0") -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def gif() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, format="GIF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("json", b"[]", "no object"),
        ("json", b"{", "Expecting property name"),
        ("json", b'{"a":' * 100_000, "nested too deep"),
        ("json", b'{"a":"' + b" " * 2**20 + b'"}', "JSON of 1048584 bytes"),
        ("mask.png", b"", "not a sound PNG"),
        ("mask.png", gif(), "not a sound PNG"),
        ("mask.png", png_of(30_000, 30_000, depth=1), "PNG"),
        ("mask.png", png_of(8_000, 8_000, depth=1), "8000 x 8000 is no view"),
        ("mask.png", png_of(16, 16, depth=1, data=b"\0"), "not a sound PNG"),
        ("mask.png", png_of(4, 4, data=bytes(20)), "mode L is not of mode 1"),
        ("mask.png", png_of(4, 4, kind=2, data=bytes(52)), "mode RGB is not of mode 1"),
        ("mask.png", encode_png(np.zeros((4, 4, 3), np.uint8)), "mode RGB is not of mode 1"),
        ("image.png", encode_png(np.zeros((4, 4), np.bool_)), "mode 1 is not of mode RGB"),
        ("image.png", png_of(4, 4, depth=16, data=bytes(36)), "is not of mode RGB"),
    ],
)
def test_hostile_files_of_a_sample_are_refused(file: str, content: bytes, reason: str) -> None:
    files = {**encode_entry(make_entry(0, with_image=True), stored_dtype="fp16"), file: content}
    with pytest.raises(ValueError, match=reason):
        decode_entry("k", files)


def test_what_a_sample_lacks_is_named() -> None:
    files = encode_entry(make_entry(0), stored_dtype="fp16")
    for name in files:
        with pytest.raises(ValueError, match=f"sample k has no file '{name}'"):
            decode_entry("k", {other: data for other, data in files.items() if other != name})
    with pytest.raises(ValueError, match="no file 'safetensors'"):
        decode_columns({})
    assert decode_png(files["mask.png"], mode="1").shape == (16, 16)
