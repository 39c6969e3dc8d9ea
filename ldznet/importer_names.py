"""CompVis's and the authors' names for the tensors of our networks."""

from collections.abc import Iterator
from typing import Any

from ldznet.blocks import unet_blocks

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_FUSION = {
    "pool": "attentionpool2D",
    "attention": "transformer_blocks.0.attn3",
    "norm": "transformer_blocks.0.norm_sd",
}


def unet_module_names(unet: Any) -> dict[str, str]:
    """`{module path in a diffusers UNet: its path in CompVis's UNet}`, for modules named otherwise."""
    return dict(_module_pairs(unet))


def _module_pairs(unet: Any) -> Iterator[tuple[str, str]]:
    yield "time_embedding.linear_1", "time_embed.0"
    yield "time_embedding.linear_2", "time_embed.2"
    yield "conv_in", "input_blocks.0.0"
    yield "conv_norm_out", "out.0"
    yield "conv_out", "out.2"
    number = 1  # input_blocks.0 is conv_in
    for i, stage in enumerate(unet.down_blocks):
        for j in range(len(stage.resnets)):
            yield from _resnet(f"down_blocks.{i}.resnets.{j}", f"input_blocks.{number}.0")
            if hasattr(stage, "attentions"):
                yield f"down_blocks.{i}.attentions.{j}", f"input_blocks.{number}.1"
            number += 1
        if stage.downsamplers is not None:
            yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{number}.0.op"
            number += 1
    yield from _resnet("mid_block.resnets.0", "middle_block.0")
    yield "mid_block.attentions.0", "middle_block.1"
    yield from _resnet("mid_block.resnets.1", "middle_block.2")
    number = 0
    for i, stage in enumerate(unet.up_blocks):
        last = len(stage.resnets) - 1
        for j in range(len(stage.resnets)):
            yield from _resnet(f"up_blocks.{i}.resnets.{j}", f"output_blocks.{number}.0")
            if hasattr(stage, "attentions"):
                yield f"up_blocks.{i}.attentions.{j}", f"output_blocks.{number}.1"
            if j == last and stage.upsamplers is not None:
                place = 2 if hasattr(stage, "attentions") else 1
                yield f"up_blocks.{i}.upsamplers.0.conv", f"output_blocks.{number}.{place}.conv"
            number += 1


def _resnet(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    for part, name in _RESNET.items():
        yield f"{ours}.{part}", f"{theirs}.{name}"


def network_module_names(network: Any) -> dict[str, str]:
    """`{module path in one of our networks: its path in the authors' network}`."""
    unet = unet_module_names(network.unet)
    names = {f"unet.{ours}": theirs for ours, theirs in unet.items()}
    for number, block in unet_blocks(network.unet).items():
        for part, name in _FUSION.items():
            names[f"fusion.{number}.{part}"] = f"{unet[block.path]}.{name}"
    for index in range(len(network.head.layers)):
        names[f"head.layers.{index}"] = f"final.{index - 1}"  # our head starts with the SiLU before `final`
    return names


def translate(name: str, modules: dict[str, str]) -> str:
    """A tensor's name in the authors' naming: the longest module path that it starts with is replaced."""
    path, rest = name, ""
    while path not in modules:
        path, dot, last = path.rpartition(".")
        assert dot, f"no authors' name for {name}"
        rest = f".{last}{rest}"
    return modules[path] + rest
