"""Block numbers are the paper's, derived from the modules."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from ldznet.blocks import check_blocks, unet_blocks
from ldznet.errors import UserError

PAPER = {
    1: "down_blocks.0.attentions.0",
    2: "down_blocks.0.attentions.1",
    5: "down_blocks.2.attentions.0",
    6: "down_blocks.2.attentions.1",
    7: "mid_block.attentions.0",
    8: "up_blocks.1.attentions.0",
    10: "up_blocks.1.attentions.2",
    11: "up_blocks.2.attentions.0",
    16: "up_blocks.3.attentions.2",
}


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(cross_attention_dim=768)


def test_the_sixteen_blocks_are_where_the_paper_says(unet: UNet2DConditionModel) -> None:
    blocks = unet_blocks(unet)
    assert list(blocks) == list(range(1, 17))
    for number, path in PAPER.items():
        assert blocks[number].path == path
    for block in blocks.values():
        assert unet.get_submodule(block.path).in_channels == block.channels


def test_the_papers_blocks_hold_783360_numbers_at_384_px(unet: UNet2DConditionModel) -> None:
    blocks = [unet_blocks(unet)[number] for number in (6, 7, 8, 9, 10)]
    assert [(b.channels, 48 // b.stride) for b in blocks] == [
        (1280, 12), (1280, 6), (1280, 12), (1280, 12), (1280, 12),
    ]  # fmt: skip
    assert sum(b.channels * (48 // b.stride) ** 2 for b in blocks) == 783_360
    assert {b.head_width for b in blocks} == {160}


@pytest.mark.parametrize("wrong", [(0,), (6, 17), (-1,)])
def test_a_block_out_of_range_is_named(unet: UNet2DConditionModel, wrong: tuple[int, ...]) -> None:
    bad = next(number for number in wrong if not 1 <= number <= 16)
    with pytest.raises(UserError, match=rf"block {bad} is out of range; this UNet has 1\.\.16"):
        check_blocks(wrong, unet_blocks(unet))


def test_blocks_are_sorted_and_unrepeated(unet: UNet2DConditionModel) -> None:
    assert check_blocks([10, 6, 6], unet_blocks(unet)) == (6, 10)
    with pytest.raises(UserError, match="no block"):
        check_blocks([], unet_blocks(unet))
