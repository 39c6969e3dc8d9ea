"""The frozen LDM: latents, context, noise and features, against diffusers' and transformers' own calls."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from ldznet.errors import UserError
from ldznet.frozen_ldm import FrozenLDM
from ldznet.miniature_ldm import MiniatureConfig, build_miniature_ldm

TINY = MiniatureConfig(block_out_channels=(8, 16, 16, 16), context_width=16, vae_channels=(8, 8, 8, 8))
PROMPTS = ["a photo of a red car.", "a photo of a dog."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_miniature_ldm(
        tmp_path_factory.mktemp("ldm") / "tiny", config=TINY, phrases=["red car", "dog"]
    )


@pytest.fixture(scope="module")
def ldm(folder: Path) -> FrozenLDM:
    return FrozenLDM.from_pretrained(folder)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_nothing_in_it_trains(ldm: FrozenLDM) -> None:
    for module in (ldm.unet, ldm.vae, ldm.text_encoder):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_latents_are_the_posterior_sample_scaled(folder: Path, ldm: FrozenLDM) -> None:
    images, noise = randn(2, 3, 64, 128).tanh(), randn(2, 4, 8, 16, seed=1)
    with torch.no_grad():
        posterior = AutoencoderKL.from_pretrained(folder / "vae").encode(images).latent_dist
    expected = (posterior.mean + posterior.std * noise) * 0.18215
    torch.testing.assert_close(ldm.encode_images(images, noise=noise), expected)
    torch.testing.assert_close(ldm.encode_images(images), posterior.mean * 0.18215)


def test_the_context_is_the_text_encoders_last_hidden_state(ldm: FrozenLDM) -> None:
    tokens = ldm.tokenize(PROMPTS)
    assert tokens.shape == (2, 77)
    with torch.no_grad():
        expected = ldm.text_encoder(tokens)[0]
    context = ldm.encode_prompts(PROMPTS)
    assert context.shape == (2, 77, ldm.context_width)
    assert torch.equal(context, expected)
    assert not torch.equal(context[0], context[1])


def test_an_overlong_prompt_is_cut(ldm: FrozenLDM) -> None:
    assert ldm.encode_prompts(["red car " * 200]).shape == (1, 77, 16)


def test_a_text_encoder_saved_under_the_older_names_is_the_same(
    folder: Path, ldm: FrozenLDM, tmp_path: Path
) -> None:
    older = Path(shutil.copytree(folder, tmp_path / "older"))
    weights = older / "text_encoder" / "model.safetensors"
    state = {f"text_model.{name}": tensor for name, tensor in load_file(weights).items()}
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(state, weights, metadata={"format": "pt"})
    assert torch.equal(FrozenLDM.from_pretrained(older).encode_prompts(PROMPTS), ldm.encode_prompts(PROMPTS))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_tensor_that_the_file_lacks_is_an_error_and_not_random(
    folder: Path, tmp_path: Path, part: str
) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    (weights,) = (broken / part).glob("*.safetensors")
    state = load_file(weights)
    lost = next(name for name in sorted(state) if "encoder" in name or "conv_in" in name)
    del state[lost]
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match=lost):
        FrozenLDM.from_pretrained(broken)


def test_noise_is_added_per_sample_as_the_scheduler_does(ldm: FrozenLDM) -> None:
    latents, noise, steps = randn(3, 4, 8, 8), randn(3, 4, 8, 8, seed=1), torch.tensor([0, 400, 999])
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    torch.testing.assert_close(
        ldm.add_noise(latents, noise, steps), scheduler.add_noise(latents, noise, steps)
    )
    together = ldm.add_noise(latents, noise, steps)
    for i in range(3):
        assert torch.equal(
            together[i : i + 1], ldm.add_noise(latents[i : i + 1], noise[i : i + 1], steps[i : i + 1])
        )


def test_any_stable_diffusion_scheduler_gives_the_schedule(
    folder: Path, ldm: FrozenLDM, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "pndm"))
    shutil.rmtree(other / "scheduler")
    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    ).save_pretrained(other / "scheduler")
    inputs = randn(1, 4, 8, 8), randn(1, 4, 8, 8, seed=1), torch.tensor([317])
    changed = FrozenLDM.from_pretrained(other, components=())
    assert torch.equal(changed.add_noise(*inputs), ldm.add_noise(*inputs))


@pytest.mark.parametrize("step", [-1, 1000])
def test_a_timestep_out_of_range_is_named(ldm: FrozenLDM, step: int) -> None:
    with pytest.raises(UserError, match=rf"timestep {step} is out of range; the schedule has 0\.\.999"):
        ldm.add_noise(randn(1, 4, 8, 8), randn(1, 4, 8, 8), torch.tensor([step]))
    with pytest.raises(UserError, match="out of range"):
        ldm.block_features(randn(1, 4, 8, 8), torch.tensor([step]), randn(1, 77, 16))


def test_features_of_unequal_timesteps_equal_those_one_by_one(ldm: FrozenLDM) -> None:
    noisy, steps, context = randn(3, 4, 16, 8), torch.tensor([300, 400, 499]), randn(3, 77, 16, seed=1)
    together = ldm.block_features(noisy, steps, context, [6, 7, 16])
    assert list(together) == [6, 7, 16]
    for i in range(3):
        alone = ldm.block_features(noisy[i : i + 1], steps[i : i + 1], context[i : i + 1], [6, 7, 16])
        for number, feature in alone.items():
            torch.testing.assert_close(together[number][i : i + 1], feature, rtol=1e-4, atol=1e-5)


def test_block_shapes_are_those_of_the_features(ldm: FrozenLDM) -> None:
    features = ldm.block_features(randn(1, 4, 8, 16), torch.tensor([400]), randn(1, 77, 16), range(1, 17))
    assert ldm.block_shapes(64, 128, range(1, 17)) == {b: tuple(f.shape[1:]) for b, f in features.items()}
    with pytest.raises(UserError, match="image side 100 px is no multiple of 64"):
        ldm.block_shapes(100, 128)


def test_a_latent_side_that_is_no_multiple_of_eight_is_refused(ldm: FrozenLDM) -> None:
    with pytest.raises(UserError, match="multiples of 8"):
        ldm.block_features(randn(1, 4, 12, 8), torch.tensor([400]), randn(1, 77, 16))


def test_loading_up_to_a_block_holds_less_and_gives_the_same(folder: Path, ldm: FrozenLDM) -> None:
    short = FrozenLDM.from_pretrained(folder, last_block=10, components=["unet"])
    inputs = randn(1, 4, 8, 8), torch.tensor([400]), randn(1, 77, 16)
    for number, feature in short.block_features(*inputs).items():
        assert torch.equal(feature, ldm.block_features(*inputs)[number])
    count = [sum(p.numel() for p in x.unet.parameters()) for x in (short, ldm)]
    assert count[0] < count[1]
    with pytest.raises(UserError, match=r"block 11 is out of range; this UNet has 1\.\.10"):
        short.block_features(*inputs, blocks=[11])
    with pytest.raises(UserError, match="last_block=16"):
        short.noise_estimate(*inputs)
    with pytest.raises(UserError, match="loaded without its 'vae'"):
        short.encode_images(randn(1, 3, 64, 64))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_noise_estimate_is_the_unets(folder: Path, tmp_path: Path, kind: str) -> None:
    other = Path(shutil.copytree(folder, tmp_path / kind))
    path = other / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "prediction_type": kind}), encoding="utf-8")
    ldm = FrozenLDM.from_pretrained(other, components=["unet"])
    noisy, steps, context = randn(2, 4, 8, 8), torch.tensor([400, 30]), randn(2, 77, 16)
    with torch.no_grad():
        output = UNet2DConditionModel.from_pretrained(other / "unet")(noisy, steps, context).sample
    if kind == "v_prediction":
        alphas = DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ).alphas_cumprod
        a = alphas[steps].view(-1, 1, 1, 1)
        output = a.sqrt() * output + (1 - a).sqrt() * noisy
    torch.testing.assert_close(ldm.noise_estimate(noisy, steps, context), output)


def test_bf16_is_close_to_fp32(folder: Path, ldm: FrozenLDM) -> None:
    half = FrozenLDM.from_pretrained(folder, dtype=torch.bfloat16, last_block=10)
    images = randn(2, 3, 64, 64).tanh()
    assert half.encode_images(images).dtype == torch.float32
    context = half.encode_prompts(PROMPTS)
    assert context.dtype == torch.bfloat16
    noisy, steps = randn(2, 4, 8, 8), torch.tensor([300, 499])
    expected = ldm.block_features(noisy, steps, ldm.encode_prompts(PROMPTS))
    for number, feature in half.block_features(noisy, steps, context).items():
        assert feature.dtype == torch.bfloat16
        assert (feature.float() - expected[number]).std() < 0.05 * expected[number].std()


def test_a_stable_diffusion_2_layout_works(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "sd2"))
    shutil.rmtree(other / "unet")
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16, 16, 16),
        norm_num_groups=8,
        cross_attention_dim=16,
        attention_head_dim=[1, 2, 4, 4],
        use_linear_projection=True,
    )
    unet.save_pretrained(other / "unet", max_shard_size="200KB")  # and weights in several shards
    ldm = FrozenLDM.from_pretrained(other)
    assert (other / "unet" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    assert [ldm.blocks[number].heads for number in (1, 3, 5, 7)] == [1, 2, 4, 4]
    inputs = randn(1, 4, 8, 8), torch.tensor([400]), ldm.encode_prompts(PROMPTS[:1])
    with torch.no_grad():
        torch.testing.assert_close(ldm.noise_estimate(*inputs), unet.eval()(*inputs).sample)


def test_an_unknown_component_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match="unknown LDM component decoder"):
        FrozenLDM.from_pretrained(folder, components=["decoder"])
