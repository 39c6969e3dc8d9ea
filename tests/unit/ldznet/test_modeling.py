"""The trainable networks: shapes, sizes, gradients, folders."""

import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import load_file, save_file

from ldznet.errors import UserError
from ldznet.miniature_ldm import MiniatureConfig, build_miniature_ldm
from ldznet.modeling import (
    LDZNet,
    NetworkConfig,
    RGBNet,
    SegmentationNetwork,
    UNetConfig,
    ZNet,
    build_network,
    initialise_from_ldm,
    network_from_pretrained,
    unet_config_of,
)
from ldznet.modeling.attention_pool import AttentionPool, sinusoidal_positions
from ldznet.modeling.segmentation_head import OneChannelConv

TINY = UNetConfig(
    block_out_channels=(8, 8, 16, 16), norm_num_groups=4, attention_head_dim=2, cross_attention_dim=12
)
TINY_SD2 = TINY.model_copy(update={"attention_head_dim": (1, 2, 4, 4), "use_linear_projection": True})
VARIANTS = {
    "ldznet": {"kind": "ldznet"},
    "ldznet-concat": {"kind": "ldznet", "fusion": "concat"},
    "ldznet-sinusoidal": {"kind": "ldznet", "positional": "sinusoidal"},
    "ldznet-sd2": {"kind": "ldznet", "unet": TINY_SD2},
    "znet": {"kind": "znet"},
    "rgbnet": {"kind": "rgbnet"},
}


def make(**options: object) -> SegmentationNetwork:
    torch.manual_seed(0)
    return build_network(NetworkConfig(**{"unet": TINY, "positional_latent_side": 16, **options}))


def make_inputs(network: SegmentationNetwork, *, height: int = 8, width: int = 16, batch: int = 2) -> dict:
    generator = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    blocks = network._blocks
    return {
        "latents": randn(batch, 4, height, width),
        "context": randn(batch, 7, network.config.unet.cross_attention_dim),
        "features": {
            number: randn(batch, block.channels, height // block.stride, width // block.stride)
            for number, block in blocks.items()
        },
        "images": randn(batch, 3, 8 * height, 8 * width).tanh(),
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_is_called_alike_and_gives_logits_at_image_size(variant: str) -> None:
    network = make(**VARIANTS[variant])
    with torch.no_grad():
        logits = network(**make_inputs(network))
    assert logits.shape == (2, 1, 64, 128)
    assert logits.isfinite().all()
    assert 0.05 < logits.std() < 5
    assert network.inputs <= {"latents", "features", "images"}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_trainable_tensor(variant: str, *, checkpointing: bool) -> None:
    network = make(**VARIANTS[variant], gradient_checkpointing=checkpointing).train()
    network(**make_inputs(network)).square().mean().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_gradients_reach_no_input() -> None:
    network = make()
    inputs = make_inputs(network)
    network(**inputs).mean().backward()
    assert all(feature.grad is None for feature in inputs["features"].values())


def test_gradient_checkpointing_changes_no_number() -> None:
    plain, recomputed = make().train(), make(gradient_checkpointing=True).train()
    inputs = make_inputs(plain)
    for network in (plain, recomputed):
        network(**inputs).square().mean().backward()
    for one, other in zip(plain.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_sizes_at_stable_diffusion_1_4() -> None:
    counts = {
        kind: sum(p.numel() for p in build_network(NetworkConfig(kind=kind), device="meta").parameters())
        for kind in ("znet", "ldznet", "rgbnet")
    }
    assert counts["ldznet"] == pytest.approx(925.9e6, abs=0.1e6)
    assert counts["ldznet"] - counts["znet"] == pytest.approx(66.4e6, abs=0.1e6)
    assert counts == {"znet": 859_512_376, "ldznet": 925_882_936, "rgbnet": 859_610_236}


def test_where_ldznets_additional_parameters_are() -> None:
    network = build_network(NetworkConfig(), device="meta")
    assert isinstance(network, LDZNet)
    for number, grid in {"6": 12, "7": 6, "8": 12, "9": 12, "10": 12}.items():
        fusion = network.fusion[number]
        c = 1280
        pool = c * (1 + grid**2) + (3 * c * c + 3 * c) + (c * c + c)
        assert sum(p.numel() for p in fusion.pool.parameters()) == pool
        assert sum(p.numel() for p in fusion.attention.parameters()) == 4 * c * c + c
        assert sum(p.numel() for p in fusion.norm.parameters()) == 2 * c


def test_znets_tensors_are_a_subset_of_ldznets() -> None:
    znet = {name: p.shape for name, p in make(kind="znet").state_dict().items()}
    ldznet = {name: p.shape for name, p in make().state_dict().items()}
    assert znet.items() <= ldznet.items()
    assert {name.split(".")[0] for name in ldznet.keys() - znet.keys()} == {"fusion"}
    assert {name.split(".")[1] for name in ldznet.keys() - znet.keys()} == {"6", "7", "8", "9", "10"}


@pytest.mark.parametrize("variant", ["ldznet", "ldznet-concat"])
def test_fusing_changes_the_logits_and_each_fused_block_counts(variant: str) -> None:
    network = make(**VARIANTS[variant])
    inputs = make_inputs(network)
    with torch.no_grad():
        logits = network(**inputs)
        for number in inputs["features"]:
            changed = {**inputs["features"], number: -inputs["features"][number]}
            same = torch.equal(network(**{**inputs, "features": changed}), logits)
            assert same == (number not in network.blocks)


def test_the_fusion_is_the_only_difference_to_znet() -> None:
    network = make()
    assert isinstance(network, LDZNet)
    znet = make(kind="znet")
    znet.load_state_dict({n: t for n, t in network.state_dict().items() if not n.startswith("fusion.")})
    for fusion in network.fusion.values():
        torch.nn.init.zeros_(fusion.attention.to_out[0].weight)
        torch.nn.init.zeros_(fusion.attention.to_out[0].bias)
    inputs = make_inputs(network)
    with torch.no_grad():
        torch.testing.assert_close(network(**inputs), znet(**inputs), rtol=1e-5, atol=1e-5)


def test_a_missing_or_misshaped_feature_is_named() -> None:
    network = make()
    inputs = make_inputs(network)
    features = dict(inputs["features"])
    lost = features.pop(8)
    with pytest.raises(UserError, match="fuses block 8, but no feature of that block was given"):
        network(**{**inputs, "features": features})
    with pytest.raises(UserError, match=r"block 8 is \(2, 15, 2, 4\), the network needs \(2, 16, 2, 4\)"):
        network(**{**inputs, "features": {**features, 8: lost[:, 1:]}})
    with pytest.raises(UserError, match="block 6"):
        network(inputs["latents"], inputs["context"])


def test_sizes_that_the_unet_does_not_take_are_refused() -> None:
    network = make(kind="znet")
    inputs = make_inputs(network)
    with pytest.raises(UserError, match="multiples of 8"):
        network(inputs["latents"][..., :12], inputs["context"])
    with pytest.raises(UserError, match="13 wide, the network takes 12"):
        network(inputs["latents"], torch.zeros(2, 7, 13))
    with pytest.raises(UserError, match="RGBNet takes images"):
        make(kind="rgbnet")(latents=inputs["latents"], context=inputs["context"])


@settings(max_examples=12)
@given(
    height=st.sampled_from([8, 16, 24]),
    width=st.sampled_from([8, 16, 24]),
    batch=st.integers(1, 3),
    blocks=st.sets(st.integers(1, 16), min_size=1, max_size=16),
    fusion=st.sampled_from(["cross_attention", "concat"]),
    positional=st.sampled_from(["learned", "sinusoidal"]),
)
def test_any_blocks_any_grid_any_batch(
    *, height: int, width: int, batch: int, blocks: set[int], fusion: str, positional: str
) -> None:
    network = make(blocks=tuple(blocks), fusion=fusion, positional=positional).eval()
    assert network.blocks == tuple(sorted(blocks))
    inputs = make_inputs(network, height=height, width=width, batch=batch)
    with torch.no_grad():
        logits = network(**inputs)
        assert logits.shape == (batch, 1, 8 * height, 8 * width)
        first = {n: f[:1] for n, f in inputs["features"].items()}
        alone = network(inputs["latents"][:1], inputs["context"][:1], first)
    torch.testing.assert_close(logits[:1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("blocks", [(0,), (17,), ()])
def test_a_fused_block_out_of_range_is_refused(blocks: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"out of range|no block"):
        make(blocks=blocks)


@pytest.mark.parametrize("positional", ["learned", "sinusoidal"])
def test_the_pool_keeps_every_token_on_any_grid(positional: str) -> None:
    torch.manual_seed(0)
    pool = AttentionPool(channels=16, heads=2, grid=4, positional=positional)
    for height, width in ((4, 4), (2, 6), (1, 1)):
        feature = torch.randn(2, 16, height, width)
        assert pool(feature).shape == (2, 1 + height * width, 16)
        moved = pool(feature.roll((1, 1), dims=(2, 3)))
        assert torch.allclose(moved, pool(feature)) == (height * width == 1)


def test_the_resized_positions_keep_place() -> None:
    pool = AttentionPool(channels=4, heads=1, grid=8)
    with torch.no_grad():
        pool.positional_embedding[:, 1:] = torch.arange(8.0).expand(8, 8).reshape(1, 64)  # grows with x
    positions = pool._positions(4, 16, torch.zeros(1))[:, 1:].unflatten(1, (4, 16))
    assert (positions.diff(dim=2)[..., 2:-2] > 0).all()
    torch.testing.assert_close(positions, positions[:, :1].expand_as(positions))
    assert torch.equal(pool._positions(8, 8, torch.zeros(1)), pool.positional_embedding)


def test_sinusoidal_positions_tell_every_place_apart() -> None:
    encoding = sinusoidal_positions(18, 5, 7, device=torch.device("cpu"))
    assert encoding.shape == (18, 35)
    distances = torch.cdist(encoding.T, encoding.T) + 10 * torch.eye(35)
    assert distances.min() > 0.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_network_comes_back_the_same(variant: str, tmp_path: Path) -> None:
    network = make(**VARIANTS[variant]).eval()
    network.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    loaded = network_from_pretrained(tmp_path / "model")
    assert type(loaded) is type(network)
    assert loaded.config == network.config
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    inputs = make_inputs(network)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs), network(**inputs))


def test_a_network_of_another_kind_is_refused(tmp_path: Path) -> None:
    make(kind="znet").save_pretrained(tmp_path)
    assert isinstance(ZNet.from_pretrained(tmp_path), ZNet)
    with pytest.raises(UserError, match="holds a znet, not a ldznet"):
        LDZNet.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds a znet, not a rgbnet"):
        RGBNet.from_pretrained(tmp_path)


def test_bf16_works_and_loads(tmp_path: Path) -> None:
    network = make().to(torch.bfloat16)
    inputs = make_inputs(network)
    half = {
        key: {n: t.bfloat16() for n, t in value.items()} if isinstance(value, dict) else value.bfloat16()
        for key, value in inputs.items()
    }
    logits = network(**half)
    assert logits.dtype == torch.bfloat16
    network.save_pretrained(tmp_path)
    loaded = LDZNet.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(loaded(**half), logits)
    assert {p.dtype for p in LDZNet.from_pretrained(tmp_path).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "has no config.json"),
        ("{", "is not JSON"),
        ("[]", 'lacks "format"'),
        ('{"_class_name": "UNet2DConditionModel"}', 'lacks "format"'),
        (
            '{"format": "ldznet-network", "format_version": 99}',
            "format version 99; this program reads version 1",
        ),
        (
            '{"format": "ldznet-network", "format_version": 1, "network": {"kind": "znet", "size": 3}}',
            r"network\.size: Extra inputs",
        ),
    ],
)
def test_a_folder_that_is_not_ours_is_refused_in_one_line(
    tmp_path: Path, content: str | None, told: str
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=told) as caught:
        network_from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_told(tmp_path: Path) -> None:
    make(kind="znet").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    state["stray"] = state.pop("head.layers.1.bias")
    state["head.layers.1.weight"] = torch.zeros(2)
    save_file(state, path)
    with pytest.raises(UserError) as caught:
        network_from_pretrained(tmp_path)
    told = str(caught.value)
    assert "1 tensor missing (head.layers.1.bias)" in told
    assert "1 tensor extra (stray)" in told
    assert "head.layers.1.weight is (2,), must be (1, 1, 3, 3)" in told
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="cannot be read"):
        network_from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        network_from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["ldznet", "znet", "rgbnet"])
def test_without_text_the_phrase_comes_by_the_features_alone(kind: str) -> None:
    network = make(kind=kind, text="none").eval()
    inputs = make_inputs(network)
    given = network(**inputs)
    assert torch.equal(network(**{**inputs, "context": inputs["context"].flip(0)}), given)
    others = {number: feature.flip(0) for number, feature in inputs["features"].items()}
    assert torch.equal(network(**{**inputs, "features": others}), given) == (kind != "ldznet")
    assert not torch.equal(make(kind=kind).eval()(**inputs), given)  # it would read the phrase


@pytest.fixture(scope="module")
def ldm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = MiniatureConfig(block_out_channels=(8, 8, 16, 16), context_width=12, vae_channels=(8, 8, 8, 8))
    return build_miniature_ldm(tmp_path_factory.mktemp("ldm") / "ldm", config=config, phrases=["dog"])


@pytest.mark.parametrize("kind", ["ldznet", "znet", "rgbnet"])
def test_starting_from_the_ldm_copies_what_agrees_and_says_so(ldm_folder: Path, kind: str) -> None:
    torch.manual_seed(0)
    network = build_network(NetworkConfig(kind=kind, unet=unet_config_of(ldm_folder)))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    report = initialise_from_ldm(network, ldm_folder)
    source = load_file(ldm_folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert {name.removeprefix("unet.") for name in report.copied} == source.keys() - {
        "conv_out.weight",
        "conv_out.bias",
    }
    state = network.state_dict()
    assert set(report.copied) | set(report.new) == state.keys()
    for name in report.copied:
        assert torch.equal(state[name], source[name.removeprefix("unet.")])
    for name in report.new:
        assert torch.equal(state[name], before[name])
    assert report.copied_parameters + report.new_parameters == sum(t.numel() for t in state.values())
    assert f"copied {len(report.copied)} tensors" in str(report)


def test_starting_from_a_unet_module_is_the_same(ldm_folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    config = NetworkConfig(kind="znet", unet=unet_config_of(ldm_folder))
    networks = [build_network(config), build_network(config)]
    unet = UNet2DConditionModel.from_pretrained(ldm_folder / "unet")
    reports = [initialise_from_ldm(networks[0], ldm_folder), initialise_from_ldm(networks[1], unet)]
    assert reports[0] == reports[1]
    assert torch.equal(networks[0].unet.conv_in.weight, networks[1].unet.conv_in.weight)


def test_an_unusual_unet_is_refused_by_the_key_that_makes_it_so(ldm_folder: Path) -> None:
    config = json.loads((ldm_folder / "unet" / "config.json").read_text(encoding="utf-8"))
    assert UNetConfig.from_diffusers(config).block_out_channels == (8, 8, 16, 16)
    with pytest.raises(UserError, match="class_embed_type='timestep'"):
        UNetConfig.from_diffusers({**config, "class_embed_type": "timestep"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_convolution_of_one_channel_is_the_librarys(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, maps = OneChannelConv(), torch.randn(2, 1, 9, 7)
    exact = torch.nn.Conv2d(1, 1, 3, padding=1, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    layer.to(dtype)
    theirs = maps.double().requires_grad_()
    ours = maps.to(dtype).requires_grad_()
    weights = torch.randn(2, 1, 9, 7)
    got, expected = layer(ours), exact(theirs)
    assert got.dtype == dtype
    (got * weights).sum().backward()
    (expected * weights).sum().backward()
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(got.double(), expected, **near)
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad.double(), theirs.grad, **near)
    for own, other in zip(layer.parameters(), exact.parameters(), strict=True):
        assert own.grad is not None
        torch.testing.assert_close(own.grad.double(), other.grad, **near)


def test_a_new_head_starts_as_plain_upsampling() -> None:
    network = make(kind="znet")
    with torch.no_grad():
        hidden = torch.randn(1, 1, 4, 4) * 0.5
        logits = network.head(hidden + network.unet.conv_out.bias)
    expected = torch.nn.functional.interpolate(hidden, scale_factor=8, mode="nearest")
    assert torch.corrcoef(torch.stack([logits.flatten(), expected.flatten()]))[0, 1] > 0.99
    assert logits.mean().abs() < 0.5
