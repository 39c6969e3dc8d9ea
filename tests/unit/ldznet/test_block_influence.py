"""What moves a mask: text and features of one block alone, against networks of which it is known."""

import pytest
import torch

from ldznet.block_influence import InfluenceMeter
from ldznet.blocks import unet_blocks
from ldznet.errors import UserError
from ldznet.modeling import NetworkConfig, SegmentationNetwork, UNetConfig, build_network

TINY = UNetConfig(
    block_out_channels=(8, 8, 16, 16), norm_num_groups=4, attention_head_dim=2, cross_attention_dim=12
)


def make(**options: object) -> SegmentationNetwork:
    torch.manual_seed(0)
    return build_network(NetworkConfig(**{"unet": TINY, "positional_latent_side": 16, **options})).eval()


def inputs_of(network: SegmentationNetwork) -> dict:
    generator = torch.Generator().manual_seed(1)
    blocks = unet_blocks(network.unet)
    return {
        "latents": torch.randn(4, 4, 16, 16, generator=generator),
        "context": torch.randn(4, 7, 12, generator=generator),
        "features": {
            number: torch.randn(
                4, blocks[number].channels, *[16 // blocks[number].stride] * 2, generator=generator
            )
            for number in network.blocks
        },
    }


def test_every_block_has_its_share_of_text_and_the_fused_of_features() -> None:
    network = make(blocks=(6, 12))
    inputs = inputs_of(network)
    before = network(**inputs)
    meter = InfluenceMeter(network=network)
    meter.update(**inputs)
    found = {one.block: one for one in meter.blocks}
    assert sorted(found) == list(range(1, 17))
    assert {number: one.side for number, one in found.items() if number in {1, 4, 6, 7, 12}} == {
        1: 16,
        4: 8,
        6: 4,
        7: 2,
        12: 8,
    }
    assert all(one.text > 0 for one in found.values())
    assert {number for number, one in found.items() if one.features is not None} == {6, 12}
    assert torch.equal(network(**inputs), before)  # nothing of the measurement stays


def test_a_share_is_the_change_against_the_deviation_of_all_batches() -> None:
    network = make(blocks=(12,))
    batches = [inputs_of(network), {**inputs_of(network), "latents": torch.zeros(4, 4, 16, 16)}]
    meter = InfluenceMeter(network=network)
    changes, logits = [], []
    for inputs in batches:
        meter.update(**inputs)
        with torch.inference_mode():
            own = network(**inputs)
            rolled = {12: inputs["features"][12].roll(2, 0)}
            changes.append(network(**{**inputs, "features": rolled}) - own)
            logits.append(own)
    expected = torch.cat(changes).square().mean().sqrt() / torch.cat(logits).std(correction=0)
    (found,) = [one for one in meter.blocks if one.block == 12]
    assert found.features == pytest.approx(float(expected), rel=1e-4)


def test_text_is_changed_at_one_block_alone() -> None:
    network = make(kind="znet")
    layer = network.unet.get_submodule(unet_blocks(network.unet)[5].path)
    for block in layer.transformer_blocks:  # block 5 does not read the text
        torch.nn.init.zeros_(block.attn2.to_v.weight)
    meter = InfluenceMeter(network=network)
    meter.update(**inputs_of(network))
    assert [one.block for one in meter.blocks if one.text == 0] == [5]


def test_a_network_without_text_is_moved_by_none() -> None:
    with pytest.raises(UserError, match="reads no text"):
        InfluenceMeter(network=make(text="none"))
