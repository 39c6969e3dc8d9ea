"""Stored types: how block features become int8 or fp8 with scales, and what they are again.

A scale serves `scale_group` neighbouring channels at all positions: vision features have outlier channels, which would
cost all others their precision if they shared one. Scales are kept in fp16 and rounded up to it *before* values are
divided by them, so that no value overflows. All arithmetic is elementwise fp32 with IEEE rounding on the CPU, halves
rounded to even: equal values give equal bytes on every machine. Value x scale is exact in fp32 (at most 8 + 11
significant bits), so that reading rounds nothing either, on any device, unless it is asked for less than fp32.
"""

import math
from typing import Final

import torch
from torch import Tensor

from pipeline.cache.spec import QUANTISED, Dtype

TORCH_DTYPES: Final[dict[Dtype, torch.dtype]] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
}
QUANTISED_DTYPES: Final = frozenset(TORCH_DTYPES[name] for name in QUANTISED)
SCALE_DTYPE: Final = torch.float16
_LARGEST: Final[dict[Dtype, float]] = {"int8": 127.0, "fp8": 448.0}  # symmetric: int8's -128 is not used


def plain_dtype(stored_dtype: Dtype) -> Dtype:
    """The type of latents and context: the stored one, fp16 beside quantised block features."""
    return "fp16" if stored_dtype in QUANTISED else stored_dtype


def scale_count(channels: int, scale_group: int) -> int:
    """Scales of a block's features: one a group, so `ceil(C / scale_group)`."""
    return -(-channels // scale_group)


def group_size(channels: int, scales: int) -> int:
    """Neighbouring channels that share a scale, given how many scales there are.

    Where `scale_group` does not divide C, groups are evened out: as many of them as `ceil(C / scale_group)`, none
    larger than needed for that, the last one smaller. So C and the number of scales tell the groups.
    """
    return -(-channels // scales)


def feature_bytes(shape: tuple[int, ...], *, stored_dtype: Dtype, scale_group: int = 1) -> int:
    """Bytes of one block's features `C,h,w` and their scales, without the few of their names."""
    values = math.prod(shape) * TORCH_DTYPES[stored_dtype].itemsize
    if stored_dtype not in QUANTISED:
        return values
    return values + scale_count(shape[0], scale_group) * SCALE_DTYPE.itemsize


def quantise(features: Tensor, *, stored_dtype: Dtype, scale_group: int = 1) -> tuple[Tensor, Tensor]:
    """Block features as int8 or fp8 (e4m3) with their scales.

    Symmetric, the largest magnitude of a group at 127 or 448. int8 is off by half a scale at most; fp8 by 1/16 of the
    value or 2^-10 of a scale, whichever is more. Quantising what `dequantise` gave changes nothing, as long as
    scales are normal fp16 numbers (2^-14 and more).

    Args:
        features: `C,h,w`, finite, of any floating type.
        stored_dtype: `int8` or `fp8`.
        scale_group: neighbouring channels that share a scale.

    Returns:
        Values `C,h,w` and scales `ceil(C / scale_group)` in fp16, on the CPU. A group of zeros has scale 0.

    Raises:
        OverflowError: a value is so large that its scale does not fit fp16 (8.3e6 for int8, 2.9e7 for fp8).
    """
    largest, values = _LARGEST[stored_dtype], features.detach().to("cpu", torch.float32)
    channels = values.shape[0]
    scales = _scales(values, largest, scale_count(channels, scale_group))
    if not bool(torch.isfinite(scales).all()):
        raise OverflowError(f"a value of {float(values.abs().max()):.3g} is too large for {stored_dtype}")
    divisors = torch.where(scales > 0, scales, 1).float()
    scaled = values / _of_each_channel(divisors, channels).view(-1, 1, 1)  # C,h,w
    if stored_dtype == "int8":
        scaled = scaled.round_()  # halves to even; within +-127, for the scale was rounded up
    return scaled.contiguous().to(TORCH_DTYPES[stored_dtype]), scales


def _scales(values: Tensor, largest: float, groups: int) -> Tensor:
    """The smallest fp16 scales that keep each group within +-`largest`: `C,h,w -> G`."""
    channels = values.shape[0]
    size = group_size(channels, groups)
    peaks = values.abs().amax(dim=(1, 2))  # C
    peaks = torch.nn.functional.pad(peaks, (0, groups * size - channels)).view(groups, size).amax(dim=1)  # G
    scales = (peaks / largest).to(SCALE_DTYPE)  # to the nearest
    too_small = scales.float() * largest < peaks  # the product is exact
    return torch.where(too_small, (scales.view(torch.int16) + 1).view(SCALE_DTYPE), scales)


def dequantise(values: Tensor, scales: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """What `quantise` stored, on the device that it lies on: exact in fp32, then rounded once to `dtype`.

    Args:
        values: `…,C,h,w`, one sample or a batch.
        scales: `…,G`.
        dtype: of the result.

    Returns:
        `…,C,h,w` in `dtype`.
    """
    assert values.dtype in QUANTISED_DTYPES, f"{values.dtype} is not quantised"
    each = _of_each_channel(scales.float(), values.shape[-3])  # …,C
    return values.float().mul_(each[..., None, None]).to(dtype)


def _of_each_channel(scales: Tensor, channels: int) -> Tensor:
    """`…,G -> …,C`."""
    size = group_size(channels, scales.shape[-1])
    return scales if size == 1 else scales.repeat_interleave(size, dim=-1)[..., :channels]
