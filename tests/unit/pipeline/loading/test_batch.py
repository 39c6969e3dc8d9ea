"""Batches: stored values travel, and are whole where networks take them."""

import numpy as np
import pytest
import torch
from unit.pipeline.cache.made_cache import make_entries

from pipeline.cache.entry import Entry, decode_entry, encode_entry
from pipeline.cache.spec import Dtype
from pipeline.cache.stored_type import TORCH_DTYPES, dequantise
from pipeline.loading.batch import Batch
from pipeline.loading.collate import collate
from pipeline.training.engine import split_batch

CPU = torch.device("cpu")


def stored_entries(stored: Dtype) -> list[Entry]:
    return [
        decode_entry(entry.key, encode_entry(entry, stored_dtype=stored, scale_group=3))
        for entry in make_entries(5, with_image=True)
    ]


def batch_of(stored: Dtype) -> Batch:
    return collate(stored_entries(stored), size=6, samples=5)


@pytest.mark.parametrize("stored", TORCH_DTYPES)
def test_a_batch_keeps_the_stored_type_until_it_is_where_it_goes(stored: Dtype) -> None:
    entries, batch = stored_entries(stored), batch_of(stored)
    assert {tensor.dtype for tensor in batch.features.values()} == {TORCH_DTYPES[stored]}
    assert list(batch.scales) == ([6, 8] if stored in {"int8", "fp8"} else [])
    unchanged = batch.to(CPU)
    assert all(torch.equal(unchanged.features[b].float(), batch.features[b].float()) for b in (6, 8))
    assert list(unchanged.scales) == list(batch.scales)
    for dtype in (torch.float32, torch.bfloat16):
        moved = batch.to(CPU, dtype)
        assert not moved.scales
        inputs = (moved.latents, moved.context, moved.images, *moved.features.values())
        assert {tensor.dtype for tensor in inputs if tensor is not None} == {dtype}
        assert (moved.masks.dtype, moved.weight.dtype) == (torch.bool, torch.float32)
        for row, entry in enumerate([*entries, entries[-1]]):
            for block, values in entry.features.items():
                whole = dequantise(values, entry.scales[block]) if entry.scales else values
                assert torch.equal(moved.features[block][row], whole.to(dtype))
        again = moved.to(CPU, dtype)
        assert torch.equal(again.features[6], moved.features[6])


@pytest.mark.parametrize("stored", ["fp16", "int8"])
def test_micro_batches_keep_their_own_scales(stored: Dtype) -> None:
    batch = batch_of(stored)
    whole = batch.to(CPU, torch.float32)
    parts = [part.to(CPU, torch.float32) for part in split_batch(batch, 4)]
    assert [len(part.keys) for part in parts] == [4, 2]
    for block in (6, 8):
        assert torch.equal(torch.cat([part.features[block] for part in parts]), whole.features[block])
    assert sum((part.keys for part in parts), ()) == batch.keys
    assert torch.cat([part.weight for part in parts]).tolist() == [1, 1, 1, 1, 1, 0]


def test_masks_are_zero_or_one() -> None:
    entries, batch = stored_entries("int8"), batch_of("int8")
    assert batch.masks.shape == (6, 1, 16, 16)
    assert np.array_equal(batch.masks[2, 0].numpy(), entries[2].mask.astype(np.float32))
