"""Other people's checkpoints become our folders, and nothing in them is executed."""

import json
import os
import pickle
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from omegaconf import OmegaConf
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from ldznet.errors import UserError
from ldznet.frozen_ldm import FrozenLDM
from ldznet.importer import import_checkpoint, network_from_state_dict, read_unet_config
from ldznet.importer_checkpoint import load_state_dict
from ldznet.importer_names import network_module_names, translate, unet_module_names
from ldznet.miniature_tokenizer import build_tokenizer
from ldznet.modeling import (
    LDZNet,
    NetworkConfig,
    SegmentationNetwork,
    ZNet,
    build_network,
    network_from_pretrained,
)

UNET = {
    "model_channels": 32,
    "channel_mult": [1, 1, 1, 2],
    "num_heads": 2,
    "context_dim": 64,
    "image_size": 32,
}
PREFIX = "model.diffusion_model."
FROZEN = "sd_features_stage_model.model.model.diffusion_model."


def make_network(kind: str = "ldznet", **options: object) -> SegmentationNetwork:
    torch.manual_seed(0)
    return build_network(
        NetworkConfig(kind=kind, unet=read_unet_config(UNET), positional_latent_side=16, **options)
    ).eval()


def authors_state(network: SegmentationNetwork) -> dict[str, torch.Tensor]:
    modules = network_module_names(network)
    return {PREFIX + translate(name, modules): tensor for name, tensor in network.state_dict().items()}


def make_frozen_unet() -> UNet2DConditionModel:
    torch.manual_seed(1)
    return UNet2DConditionModel(**{**read_unet_config(UNET).to_diffusers(), "out_channels": 4}).eval()


def compvis_unet(unet: UNet2DConditionModel, prefix: str) -> dict[str, torch.Tensor]:
    modules = unet_module_names(unet)
    return {prefix + translate(name, modules): tensor for name, tensor in unet.state_dict().items()}


def compvis_vae(vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    """The first stage's tensors under the names of the original code."""
    rules = [
        (r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2"),
        (r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample"),
        (r"decoder\.up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"decoder.up.{3 - int(m[1])}.block.{m[2]}"),
        (r"decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.up.{3 - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"conv_norm_out", "norm_out"),
        (r"conv_shortcut", "nin_shortcut"),
    ]
    state = {}
    for name, tensor in vae.state_dict().items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)  # noqa: PLW2901
        if ".attn_1." in name and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]  # noqa: PLW2901 - the original has 1x1 convolutions there
        state[f"first_stage_model.{name}"] = tensor
    return state


def make_vae() -> AutoencoderKL:
    torch.manual_seed(2)
    return AutoencoderKL(
        block_out_channels=(32, 32, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    ).eval()


def make_text_encoder(vocab_size: int) -> CLIPTextModel:
    torch.manual_seed(3)
    config = CLIPTextConfig(
        vocab_size=vocab_size, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1,
        bos_token_id=vocab_size - 2, eos_token_id=vocab_size - 1, pad_token_id=vocab_size - 1,
    )  # fmt: skip
    return CLIPTextModel(config).eval()


def compvis_text(encoder: CLIPTextModel) -> dict[str, torch.Tensor]:
    prefix = "cond_stage_model.transformer.text_model."
    state = {prefix + name: tensor for name, tensor in encoder.state_dict().items()}
    return {**state, prefix + "embeddings.position_ids": torch.arange(77)[None]}


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Stand-ins for Lightning's classes, importable while a checkpoint is written."""

    def make(path: str, *, base: type = object) -> type:
        module_name, _, name = path.rpartition(".")
        parts = module_name.split(".")
        for depth in range(1, len(parts) + 1):
            parent = ".".join(parts[:depth])
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        made = type(name, (base,), {"__module__": module_name})
        setattr(sys.modules[module_name], name, made)
        return made

    return types.SimpleNamespace(
        callback=make("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
        attributes=make("pytorch_lightning.utilities.parsing.AttributeDict", base=dict),
        config=make("pytorch_lightning.utilities.parsing.Settings"),
    )


def write_lightning(path: Path, state: dict[str, torch.Tensor], lightning: types.SimpleNamespace) -> None:
    settings = lightning.config()
    settings.__dict__.update({"_content": {"lr": 1.6e-5}, "_parent": None})
    content = {
        "epoch": 14,
        "global_step": 146_000,
        "callbacks": {lightning.callback: {"best_model_score": torch.tensor(0.1), "monitor": "val/loss"}},
        "hyper_parameters": lightning.attributes(
            settings=settings,
            config=OmegaConf.create({"lr": 1.6e-5, "scheduler": {"steps": [1, 2]}}),
            rate=5e-7,
        ),
        "state_dict": state,
        "optimizer_states": [{"state": {0: {"step": 3}}, "param_groups": [{"lr": 1e-5}]}],
    }
    torch.save(content, path)
    for name in list(sys.modules):
        if name.startswith("pytorch_lightning"):
            del sys.modules[name]  # the importer must do without them


def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "unet.json"
    path.write_text(json.dumps({"unet": UNET}), encoding="utf-8")
    return path


@torch.no_grad()
def test_a_lightning_checkpoint_becomes_our_folder(tmp_path: Path, lightning: types.SimpleNamespace) -> None:
    network = make_network()
    state = {**authors_state(network), "betas": torch.ones(3), "first_stage_model.x": torch.ones(1)}
    write_lightning(tmp_path / "last.ckpt", state, lightning)
    report = import_checkpoint(tmp_path / "last.ckpt", tmp_path / "out", unet_config=config_file(tmp_path))
    assert (report.kind, report.from_ema, report.tensors) == ("ldznet", 0, len(network.state_dict()))
    loaded = network_from_pretrained(tmp_path / "out")
    assert isinstance(loaded, LDZNet)
    assert loaded.config == network.config
    assert loaded.state_dict().keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("blocks", [(6, 7, 8, 9, 10), (1, 7, 16)])
def test_the_fused_blocks_are_read_from_the_tensors(blocks: tuple[int, ...]) -> None:
    network = make_network(blocks=blocks)
    assert network_from_state_dict(authors_state(network), unet_config=UNET).config == network.config


def test_a_znet_checkpoint_becomes_a_znet(tmp_path: Path) -> None:
    network = make_network("znet")
    save_file(authors_state(network), tmp_path / "znet.safetensors")
    report = import_checkpoint(tmp_path / "znet.safetensors", tmp_path / "out", unet_config=UNET)
    assert report.kind == "znet"
    assert isinstance(network_from_pretrained(tmp_path / "out"), ZNet)


def test_the_averaged_weights_are_preferred() -> None:
    network = make_network()
    state = authors_state(network)
    ema = {"model_ema." + name.removeprefix("model.").replace(".", ""): 2 * t for name, t in state.items()}
    assert "model_ema.diffusion_modeltime_embed0weight" in ema
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(5)}
    loaded = network_from_state_dict({**state, **ema, **counters}, unet_config=UNET)
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], 2 * tensor)


def test_missing_extra_and_misshaped_tensors_are_named_as_in_the_checkpoint() -> None:
    state = authors_state(make_network())
    del state[f"{PREFIX}final.12.bias"]
    state[f"{PREFIX}stray.weight"] = torch.zeros(1)
    state[f"{PREFIX}time_embed.0.weight"] = torch.zeros(3, 3)
    with pytest.raises(UserError) as caught:
        network_from_state_dict(state, unet_config=UNET, where="last.ckpt")
    told = str(caught.value)
    assert told.startswith("last.ckpt: ")
    assert "1 tensor missing (final.12.bias)" in told
    assert "1 tensor extra (stray.weight)" in told
    assert "time_embed.0.weight is (3, 3), must be (128, 32)" in told


def test_the_wrong_size_is_told_at_once() -> None:
    with pytest.raises(UserError, match=r"of wrong shape .* and [0-9]+ more"):
        network_from_state_dict(authors_state(make_network()))


class Payload:
    """On unpickling, a hostile object makes a folder."""

    def __init__(self, victim: Path, function: object = os.mkdir) -> None:
        self.victim, self.function = victim, function

    def __reduce__(self) -> tuple:
        return self.function, (str(self.victim),)


class Evaluated(Payload):
    def __reduce__(self) -> tuple:
        return eval, (f"__import__('os').mkdir({str(self.victim)!r})",)


@pytest.mark.parametrize("payload", [Payload, Evaluated])
def test_a_hostile_checkpoint_is_refused_and_executes_nothing(tmp_path: Path, payload: type[Payload]) -> None:
    victim = tmp_path / "victim"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "x": payload(victim)}, tmp_path / "hostile.ckpt")
    with pytest.raises(UserError, match=r"refused|cannot be read safely"):
        import_checkpoint(tmp_path / "hostile.ckpt", tmp_path / "out")
    assert not victim.exists()
    assert not (tmp_path / "out").exists()
    pickle.loads(pickle.dumps(payload(victim)))  # the payload is a live one
    assert victim.exists()


def make_folders(_self: object, *paths: str) -> None:
    for path in paths:
        Path(path).mkdir()


def test_a_class_named_like_lightnings_is_inert_whatever_it_does(
    tmp_path: Path, lightning: types.SimpleNamespace
) -> None:
    victim = tmp_path / "victim"
    lightning.callback.__reduce__ = lambda self: (type(self), (str(victim),), {"state": 1})
    lightning.callback.__init__ = make_folders
    torch.save({"state_dict": {"a": torch.zeros(1)}, "callbacks": lightning.callback()}, tmp_path / "a.ckpt")
    assert list(load_state_dict(tmp_path / "a.ckpt")) == ["a"]
    assert not victim.exists()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.ckpt", None, "does not exist"),
        ("a.ckpt", b"nonsense", "cannot be read safely"),
        ("a.ckpt", pickle.dumps({"state_dict": {}}), "cannot be read safely"),
        ("a.safetensors", b"nonsense", "is no safetensors file"),
    ],
)
def test_what_is_no_checkpoint_is_said_to_be(
    tmp_path: Path, name: str, content: bytes | None, told: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=told) as caught:
        import_checkpoint(tmp_path / name, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    for content, told in (
        ({"a": torch.zeros(1)}, "neither LD-ZNet's nor"),
        ({"a": 1}, "no tensors"),
        ([], "no state dict"),
    ):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(UserError, match=told):
            import_checkpoint(tmp_path / "a.pt", tmp_path / "out")


def test_an_unknown_unet_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown key 'model_chanels'"):
        read_unet_config({"model_chanels": 32})
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_unet_config(tmp_path / "nowhere.json")
    sd = read_unet_config(None)
    assert (sd.block_out_channels, sd.cross_attention_dim) == ((320, 640, 1280, 1280), 768)


@torch.no_grad()
def test_an_original_stable_diffusion_checkpoint_becomes_a_frozen_ldm(tmp_path: Path) -> None:
    vocabulary = build_tokenizer(tmp_path / "tokenizer", ["a red car", "dog"], vocabulary_size=600)
    unet, vae, text = make_frozen_unet(), make_vae(), make_text_encoder(vocabulary)
    state = {
        **compvis_unet(unet, PREFIX),
        **compvis_vae(vae),
        **compvis_text(text),
        "betas": torch.ones(1000),
    }
    torch.save({"state_dict": state, "global_step": 1}, tmp_path / "sd.ckpt")
    report = import_checkpoint(
        tmp_path / "sd.ckpt", tmp_path / "ldm", unet_config=UNET, tokenizer=tmp_path / "tokenizer"
    )
    assert report.kind == "frozen LDM"
    ldm = FrozenLDM.from_pretrained(tmp_path / "ldm")
    images, noise = torch.rand(1, 3, 64, 128) * 2 - 1, torch.randn(1, 4, 8, 16)
    posterior = vae.encode(images).latent_dist
    latents = (posterior.mean + posterior.std * noise) * 0.18215
    torch.testing.assert_close(ldm.encode_images(images, noise=noise), latents)
    context = ldm.encode_prompts(["a red car"])
    torch.testing.assert_close(context, text(ldm.tokenize(["a red car"])).last_hidden_state)
    steps = torch.tensor([400])
    torch.testing.assert_close(ldm.noise_estimate(noise, steps, context), unet(noise, steps, context).sample)


def test_the_frozen_ldm_inside_the_authors_checkpoint_can_be_had_too(tmp_path: Path) -> None:
    vocabulary = build_tokenizer(tmp_path / "tokenizer", ["a red car", "dog"], vocabulary_size=600)
    unet = make_frozen_unet()
    parts = {**compvis_vae(make_vae()), **compvis_text(make_text_encoder(vocabulary))}
    state = {**authors_state(make_network()), **compvis_unet(unet, FROZEN), **parts}
    torch.save({"state_dict": state}, tmp_path / "ldznet.ckpt")
    report = import_checkpoint(
        tmp_path / "ldznet.ckpt",
        tmp_path / "net",
        unet_config=UNET,
        ldm_out=tmp_path / "ldm",
        tokenizer=tmp_path / "tokenizer",
    )
    assert report.ldm_folder == tmp_path / "ldm"
    ldm = FrozenLDM.from_pretrained(tmp_path / "ldm")
    assert torch.equal(ldm.unet.conv_in.weight, unet.conv_in.weight)
    assert isinstance(network_from_pretrained(tmp_path / "net"), LDZNet)


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        ("first_stage_model.", "holds no first stage"),
        ("cond_stage_model.", "holds no CLIP text encoder"),
        ("model.diffusion_model.time_embed.0.bias", r"1 tensor missing \(time_embed\.0\.bias\)"),
        ("first_stage_model.encoder.mid.attn_1.q.bias", "1 tensor missing"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "1 tensor missing"),
    ],
)
def test_a_part_missing_from_an_original_checkpoint_is_named(tmp_path: Path, lost: str, told: str) -> None:
    state = {
        **compvis_unet(make_frozen_unet(), PREFIX),
        **compvis_vae(make_vae()),
        **compvis_text(make_text_encoder(600)),
    }
    torch.save({n: t for n, t in state.items() if not n.startswith(lost)}, tmp_path / "sd.ckpt")
    with pytest.raises(UserError, match=told):
        import_checkpoint(tmp_path / "sd.ckpt", tmp_path / "ldm", unet_config=UNET, tokenizer=tmp_path)
    assert not (tmp_path / "ldm").exists()
