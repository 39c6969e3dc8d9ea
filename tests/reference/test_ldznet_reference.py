"""Our networks, filled through the importer, give what the authors' own network gives.

The full reference lies beside the checkout; a copy thinned out to every Nth number is kept here for where it does
not.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldznet.frozen_ldm import FrozenLDM
from ldznet.importer import (
    NETWORK_PREFIX,
    frozen_unet_from_state_dict,
    network_from_state_dict,
    read_unet_config,
)
from ldznet.importer_ldm import FROZEN_UNET_PREFIX
from ldznet.importer_names import network_module_names, translate, unet_module_names
from ldznet.miniature_ldm import MiniatureConfig, build_miniature_ldm
from ldznet.modeling import LDZNet, NetworkConfig, build_network

SHARED = Path(__file__).parents[3] / "shared" / "reference" / "ldznet_reference_48x48.safetensors"
COPY = Path(__file__).parent / "data" / "ldznet_reference_thinned.safetensors"
UNET = {"model_channels": 32, "channel_mult": [1, 2, 4, 4], "num_heads": 8, "context_dim": 64}
INPUTS = ("z", "context", "noise", "timesteps")
BLOCKS = (1, 6, 7, 8, 9, 10, 16)
TOLERANCE = 1e-4  # of the reference's standard deviation


@dataclass(frozen=True)
class Reference:
    """Tensors to compare with; thinned ones keep every `stride`-th number and the whole's deviation."""

    tensors: dict[str, torch.Tensor]
    thinned: dict[str, tuple[int, float]]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def deviation(self, name: str, ours: torch.Tensor) -> float:
        theirs = self.tensors[name]
        if name not in self.thinned:
            assert ours.shape == theirs.shape
            return ((ours - theirs).abs().max() / theirs.std()).item()
        stride, std = self.thinned[name]
        assert len(ours.flatten()[::stride]) == len(theirs)
        return ((ours.flatten()[::stride] - theirs).abs().max() / std).item()


def read_copy() -> Reference:
    with safe_open(COPY, framework="pt") as file:
        thinned = {name: tuple(value) for name, value in json.loads(file.metadata()["thinned"]).items()}
    return Reference(load_file(COPY), thinned)


def make_tensor(name: str, shape: tuple[int, ...], *, salt: str = "a") -> torch.Tensor:
    """A parameter's value by the reference's own rule: name and shape decide."""
    random = np.random.Generator(np.random.PCG64(crc32((salt + name).encode())))
    x = random.standard_normal(shape, dtype=np.float32)
    short = name.removeprefix(FROZEN_UNET_PREFIX).removeprefix(NETWORK_PREFIX)
    if len(shape) == 1:
        value = 1 + np.float32(0.1) * x if name.endswith(".weight") else np.float32(0.05) * x
    elif name.endswith("positional_embedding"):
        value = x / 2
    else:
        gain = 4 if short.startswith(("final.", "out.2.")) else 1
        value = np.float32(gain) * x / np.sqrt(np.float32(np.prod(shape[1:])))
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def our_names_and_shapes() -> dict[str, tuple[int, ...]]:
    """The authors' names and shapes as our importer expects them."""
    network = build_network(NetworkConfig(unet=read_unet_config(UNET)), device="meta")
    modules = network_module_names(network)
    shapes = {NETWORK_PREFIX + translate(n, modules): tuple(t.shape) for n, t in network.state_dict().items()}
    modules = unet_module_names(network.unet)
    for name, tensor in network.unet.state_dict().items():
        shape = (4, *tensor.shape[1:]) if name.startswith("conv_out") else tuple(tensor.shape)
        shapes[FROZEN_UNET_PREFIX + translate(name, modules)] = shape
    return shapes


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(load_file(SHARED), {}) if SHARED.is_file() else read_copy()


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return {name: make_tensor(name, shape) for name, shape in our_names_and_shapes().items()}


@pytest.fixture(scope="module")
def ldm(state: dict, tmp_path_factory: pytest.TempPathFactory) -> FrozenLDM:
    folder = build_miniature_ldm(
        tmp_path_factory.mktemp("reference") / "ldm",
        config=MiniatureConfig(block_out_channels=(8, 8, 8, 8)),
        phrases=["a cat"],
    )
    frozen_unet_from_state_dict(state, unet_config=UNET).save_pretrained(folder / "unet")
    return FrozenLDM.from_pretrained(folder, components=["unet"])


@pytest.fixture(scope="module")
def network(state: dict) -> LDZNet:
    network = network_from_state_dict(state, unet_config=UNET)
    assert isinstance(network, LDZNet)
    assert network.blocks == (6, 7, 8, 9, 10)
    return network


@pytest.mark.skipif(not SHARED.is_file(), reason="the shared reference outputs are not beside the checkout")
def test_the_importer_expects_the_authors_names_and_shapes() -> None:
    description = json.loads(SHARED.with_suffix(".json").read_text(encoding="utf-8"))
    listed = {**description["ldm"], **description["znet"]}
    assert our_names_and_shapes() == {name: tuple(shape) for name, shape in listed.items()}
    assert description["salt"] == "a"
    assert read_unet_config(description["unet"]) == read_unet_config(UNET)


@pytest.mark.skipif(not SHARED.is_file(), reason="the shared reference outputs are not beside the checkout")
def test_the_thinned_copy_is_of_the_shared_reference() -> None:
    full, copy = load_file(SHARED), read_copy()
    assert full.keys() == copy.tensors.keys()
    for name, tensor in full.items():
        assert copy.deviation(name, tensor) == 0 if name in copy.thinned else torch.equal(copy[name], tensor)


def test_the_noised_latents_match(ldm: FrozenLDM, reference: Reference) -> None:
    zt = ldm.add_noise(reference["z"], reference["noise"], reference["timesteps"])
    assert reference.deviation("zt", zt) < TOLERANCE


@pytest.fixture(scope="module")
def features(ldm: FrozenLDM, reference: Reference) -> dict[int, torch.Tensor]:
    zt = ldm.add_noise(reference["z"], reference["noise"], reference["timesteps"])
    return ldm.block_features(zt, reference["timesteps"], reference["context"], BLOCKS)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_blocks_features_match(features: dict, reference: Reference, block: int) -> None:
    assert reference.deviation(f"feature_block_{block}", features[block]) < TOLERANCE


def test_the_noise_estimate_matches(ldm: FrozenLDM, reference: Reference) -> None:
    zt = ldm.add_noise(reference["z"], reference["noise"], reference["timesteps"])
    eps = ldm.noise_estimate(zt, reference["timesteps"], reference["context"])
    assert reference.deviation("eps", eps) < TOLERANCE


@torch.no_grad()
def test_the_networks_body_and_logits_match(network: LDZNet, features: dict, reference: Reference) -> None:
    if not reference.thinned:  # the reference's own features are the network's inputs there
        features = {number: reference[f"feature_block_{number}"] for number in network.blocks}
    with sdpa_kernel(SDPBackend.MATH):  # the attention that a difference in hardware changes least
        body = network.forward_fused_body(reference["z"], reference["context"], features)
        logits = network(reference["z"], reference["context"], features)
    assert reference.deviation("znet_body", body) < TOLERANCE
    assert reference.deviation("mask_logits", logits) < TOLERANCE


@torch.no_grad()
def test_from_latents_to_logits_in_one_go(network: LDZNet, features: dict, reference: Reference) -> None:
    """All roundings together. The head multiplies them: its logits reach 25 standard deviations."""
    logits = network(reference["z"], reference["context"], features)
    assert reference.deviation("mask_logits", logits) < 10 * TOLERANCE
