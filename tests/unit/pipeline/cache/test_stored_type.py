"""Stored types: how far values move, that bytes repeat, and what quantising twice does."""

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.cache.spec import Dtype
from pipeline.cache.stored_type import (
    TORCH_DTYPES,
    dequantise,
    feature_bytes,
    group_size,
    plain_dtype,
    quantise,
    scale_count,
)

QUANTISED_TYPES: tuple[Dtype, ...] = ("int8", "fp8")
LARGEST = {"int8": 127.0, "fp8": 448.0}
SMALLEST_NORMAL = 2.0**-14  # of fp16


@st.composite
def feature_maps(draw: Any) -> Tensor:
    """`C,h,w`: channels of widely different size, some of them zero, some with an outlier."""
    shape = tuple(draw(st.integers(1, most)) for most in (12, 5, 5))
    numbers = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = 10.0 ** numbers.uniform(draw(st.sampled_from([-9, -4, -1])), 3, (shape[0], 1, 1))
    sizes *= numbers.random((shape[0], 1, 1)) > 0.2
    values = numbers.standard_normal(shape) * sizes
    if draw(st.booleans()):
        values[0, 0, 0] *= 1000
    return torch.from_numpy(values).float()


def scale_of_each(features: Tensor, scales: Tensor, scale_group: int) -> Tensor:
    """`C,1,1`, written out channel by channel."""
    channels, count = len(features), -(-len(features) // scale_group)
    each = -(-channels // count)
    return torch.tensor([float(scales[c // each]) for c in range(channels)])[:, None, None]


groups = st.integers(1, 14)


@given(feature_maps(), groups)
@example(torch.full((3, 1, 1), 0.5), 2)
def test_int8_is_off_by_half_a_scale_at_most(features: Tensor, scale_group: int) -> None:
    values, scales = quantise(features, stored_dtype="int8", scale_group=scale_group)
    assert values.dtype == torch.int8 and values.abs().max() <= 127
    each = scale_of_each(features, scales, scale_group).double()
    off = (dequantise(values, scales).double() - features.double()).abs()
    # The quotient is rounded to fp32 first: 127 x 2^-24 of a scale can be added by that.
    assert bool((off <= each * (0.5 + 127 * 2.0**-24)).all())


@given(feature_maps(), groups)
def test_fp8_is_off_by_a_sixteenth_at_most(features: Tensor, scale_group: int) -> None:
    values, scales = quantise(features, stored_dtype="fp8", scale_group=scale_group)
    assert bool(torch.isfinite(values.float()).all()) and values.float().abs().max() <= 448
    each = scale_of_each(features, scales, scale_group).double()
    off = (dequantise(values, scales).double() - features.double()).abs()
    bound = torch.maximum(features.double().abs() / 16, each * 2.0**-10)
    assert bool((off <= bound * (1 + 2.0**-20)).all())


@given(feature_maps(), groups, st.sampled_from(QUANTISED_TYPES))
def test_scales_are_the_smallest_that_hold_their_group(
    features: Tensor, scale_group: int, stored: Dtype
) -> None:
    _, scales = quantise(features, stored_dtype=stored, scale_group=scale_group)
    assert scales.dtype == torch.float16 and scales.shape == (scale_count(len(features), scale_group),)
    size = group_size(len(features), len(scales))
    assert size <= scale_group
    for number, scale in enumerate(scales.numpy()):
        peak = float(features[number * size : (number + 1) * size].abs().max())
        assert float(scale) * LARGEST[stored] >= peak
        smaller = np.nextafter(scale, np.float16(-1))
        assert (peak == 0 and scale == 0) or float(smaller) * LARGEST[stored] < peak


@given(feature_maps(), groups, st.sampled_from(QUANTISED_TYPES))
def test_quantised_values_stay_as_they_are(features: Tensor, scale_group: int, stored: Dtype) -> None:
    values, scales = quantise(features, stored_dtype=stored, scale_group=scale_group)
    again, scales_again = quantise(dequantise(values, scales), stored_dtype=stored, scale_group=scale_group)
    normal = scales >= SMALLEST_NORMAL
    assert torch.equal(scales_again[normal], scales[normal])
    kept = scale_of_each(features, normal, scale_group)[:, 0, 0] > 0
    assert torch.equal(again[kept].float(), values[kept].float())


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_channels_and_scales_tell_the_groups(channels: int, scale_group: int) -> None:
    count = scale_count(channels, scale_group)
    size = group_size(channels, count)
    assert size <= scale_group
    assert scale_count(channels, size) == count  # so a reader finds the groups that the writer made
    assert (count - 1) * size < channels <= count * size
    assert size == scale_group or channels % scale_group


@given(feature_maps(), groups, st.sampled_from(QUANTISED_TYPES))
@settings(max_examples=50)
def test_equal_values_give_equal_bytes_however_they_lie_in_memory(
    features: Tensor, scale_group: int, stored: Dtype
) -> None:
    values, scales = quantise(features, stored_dtype=stored, scale_group=scale_group)
    turned = features.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # channels last
    one_of_many = torch.stack([features + 1, features, features - 1])[1]
    for same in (turned, one_of_many, features.double()):
        other, other_scales = quantise(same, stored_dtype=stored, scale_group=scale_group)
        assert other.is_contiguous()
        assert torch.equal(other.view(torch.uint8), values.view(torch.uint8))
        assert torch.equal(other_scales, scales)


@pytest.mark.parametrize(("stored", "digest"), [("int8", "7ffe6db132b00cca"), ("fp8", "31a68387f298afc0")])
def test_bytes_are_those_of_every_machine(stored: Dtype, digest: str) -> None:
    numbers = np.random.default_rng(7)
    whole, exponents = numbers.integers(-(2**20), 2**20, (96, 12, 12)), numbers.integers(-40, -9, (96, 1, 1))
    features = torch.from_numpy(np.ldexp(whole.astype(np.float32), exponents))
    values, scales = quantise(features, stored_dtype=stored, scale_group=5)
    content = values.view(torch.uint8).numpy().tobytes() + scales.numpy().tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == digest


def test_halves_go_to_the_even_neighbour() -> None:
    features = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]).view(1, 1, 7)
    values, scales = quantise(features, stored_dtype="int8")
    assert scales.tolist() == [1.0]
    assert values.flatten().tolist() == [127, 0, 2, 2, 0, -2, -2]
    # e4m3 has 8 steps an octave: between 16 and 32 they are 2 apart.
    values, scales = quantise(torch.tensor([448.0, 17, 19, 21, -17, -19]).view(1, 1, 6), stored_dtype="fp8")
    assert scales.tolist() == [1.0]
    assert values.float().flatten().tolist() == [448, 16, 20, 20, -16, -20]


@pytest.mark.parametrize("stored", QUANTISED_TYPES)
def test_zeros_stay_zeros(stored: Dtype) -> None:
    features = torch.zeros(4, 3, 3)
    features[1] = 5
    values, scales = quantise(features, stored_dtype=stored, scale_group=1)
    assert (scales == 0).tolist() == [True, False, True, True]
    assert torch.equal(dequantise(values, scales)[[0, 2, 3]], torch.zeros(3, 3, 3))


@pytest.mark.parametrize(("stored", "most"), [("int8", 65504 * 127.0), ("fp8", 65504 * 448.0)])
def test_what_no_scale_can_hold_is_refused(stored: Dtype, most: float) -> None:
    features = torch.full((2, 1, 1), most)
    values, scales = quantise(features, stored_dtype=stored)
    assert torch.equal(dequantise(values, scales), features)
    with pytest.raises(OverflowError, match=f"too large for {stored}"):
        quantise(features * 1.001, stored_dtype=stored)


@pytest.mark.parametrize("stored", QUANTISED_TYPES)
def test_a_batch_reads_as_its_samples_do(stored: Dtype) -> None:
    torch.manual_seed(0)
    stored_samples = [quantise(torch.randn(10, 4, 4) * n, stored_dtype=stored, scale_group=3) for n in (1, 9)]
    values, scales = (torch.stack(parts) for parts in zip(*stored_samples, strict=True))
    whole = dequantise(values, scales)
    for row, (one, its_scales) in enumerate(stored_samples):
        assert torch.equal(whole[row], dequantise(one, its_scales))
    # fp32 is exact, so less is one rounding of it.
    assert torch.equal(dequantise(values, scales, dtype=torch.bfloat16), whole.bfloat16())
    exact = values.double() * scales.double().repeat_interleave(3, dim=1)[:, :10, None, None]
    assert torch.equal(whole.double(), exact)


def test_bytes_of_features_are_what_tensors_take() -> None:
    features = torch.randn(10, 4, 4)
    for stored, dtype in TORCH_DTYPES.items():
        if stored in LARGEST:
            taken = sum(part.nbytes for part in quantise(features, stored_dtype=stored, scale_group=4))
            assert plain_dtype(stored) == "fp16"
        else:
            taken = features.to(dtype).nbytes
            assert plain_dtype(stored) == stored
        assert feature_bytes((10, 4, 4), stored_dtype=stored, scale_group=4) == taken
