"""The walk gives what diffusers' own forward gives, for SD 1.x and 2.x style UNets."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from ldznet.blocks import unet_blocks
from ldznet.unet_walk import BODY, drop_after, finish_unet, walk_unet

STYLES = {
    "sd1": {"attention_head_dim": 2, "cross_attention_dim": 12},
    "sd2": {"attention_head_dim": [1, 2, 4, 4], "cross_attention_dim": 20, "use_linear_projection": True},
    "sd2-upcast": {"attention_head_dim": [1, 2, 4, 4], "cross_attention_dim": 20, "upcast_attention": True},
    "centred": {"attention_head_dim": 2, "cross_attention_dim": 12, "center_input_sample": True},
}


def make_unet(style: str) -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(block_out_channels=(8, 16, 16, 16), norm_num_groups=4, **STYLES[style])
    return unet.eval().requires_grad_(False)


def make_inputs(unet: UNet2DConditionModel, height: int = 8, width: int = 16) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, height, width, generator=generator)
    context = torch.randn(2, 7, unet.config.cross_attention_dim, generator=generator)
    return latents, torch.tensor([400, 17]), context


@pytest.mark.parametrize("style", STYLES)
def test_walking_all_blocks_equals_the_unets_own_output(style: str) -> None:
    unet = make_unet(style)
    latents, timesteps, context = make_inputs(unet)
    visited = dict(walk_unet(unet, latents, timesteps, context))
    assert sorted(visited) == list(range(17))
    torch.testing.assert_close(
        finish_unet(unet, visited[BODY]), unet(latents, timesteps, context).sample, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("style", ["sd1", "sd2"])
def test_every_feature_is_the_layers_own_output(style: str) -> None:
    unet = make_unet(style)
    inputs = make_inputs(unet)
    recorded = {}
    for number, block in unet_blocks(unet).items():
        unet.get_submodule(block.path).register_forward_hook(
            lambda _m, _i, output, number=number: recorded.__setitem__(number, output[0])
        )
    unet(*inputs)
    expected = dict(recorded)
    for number, feature in walk_unet(unet, *inputs):
        if number != BODY:
            block = unet_blocks(unet)[number]
            assert feature.shape == (2, block.channels, 8 // block.stride, 16 // block.stride)
            torch.testing.assert_close(feature, expected[number], rtol=0, atol=1e-6)


@pytest.mark.parametrize("last", [1, 2, 6, 7, 8, 10, 12, 16])
def test_a_unet_cut_after_a_block_gives_the_same_features(last: int) -> None:
    unet = make_unet("sd1")
    inputs = make_inputs(unet)
    whole = dict(walk_unet(unet, *inputs))
    drop_after(unet, unet_blocks(unet)[last].path)
    assert max(unet_blocks(unet)) == max(last, 7)
    for number, feature in walk_unet(unet, *inputs):
        assert torch.equal(feature, whole[number])
        if number == last:
            break


def test_nothing_runs_after_the_last_item_taken() -> None:
    unet = make_unet("sd1")
    ran = []
    unet.up_blocks[1].upsamplers[0].register_forward_hook(lambda *_: ran.append("upsampler"))
    unet.mid_block.register_forward_hook(lambda *_: ran.append("never called as a whole"))
    unet.up_blocks[1].attentions[2].register_forward_hook(lambda *_: ran.append("block 10"))
    for number, _ in walk_unet(unet, *make_inputs(unet)):
        if number == 10:
            break
    assert ran == ["block 10"]


def test_gradient_checkpointing_changes_no_gradient() -> None:
    unet = make_unet("sd1").requires_grad_(True)
    inputs = make_inputs(unet)
    gradients = []
    for checkpointing in (False, True):
        unet.zero_grad()
        body = dict(walk_unet(unet, *inputs, gradient_checkpointing=checkpointing))[BODY]
        finish_unet(unet, body).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in unet.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)
