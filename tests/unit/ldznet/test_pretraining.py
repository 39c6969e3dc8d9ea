"""The pretrained model's networks, losses and sampler."""

import pytest
import torch

from ldznet.blocks import unet_blocks
from ldznet.frozen_ldm import FrozenLDM
from ldznet.importer_ldm import sd_scheduler
from ldznet.miniature_tokenizer import build_tokenizer
from ldznet.pretraining.networks import (
    LdmSizes,
    build_autoencoder,
    build_text_encoder,
    build_unet,
    save_autoencoder,
    save_text_encoder,
    save_unet,
)
from ldznet.pretraining.objectives import AutoencoderLoss, AutoencoderObjective, DiffusionObjective
from ldznet.pretraining.sampling import decode_latents, sample_latents

SIZES = LdmSizes(
    autoencoder_channels=(8, 8, 8, 8),
    unet_channels=(8, 8, 16, 16),
    unet_heads=(1, 1, 2, 2),
    unet_groups=4,
    context_width=16,
    text_layers=1,
    text_heads=2,
)


@pytest.fixture(scope="module")
def ldm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ldm")
    tokens = build_tokenizer(folder / "tokenizer", ["a red apple"] * 3, vocabulary_size=600)
    save_autoencoder(build_autoencoder(SIZES, image_side=64, seed=0), folder, scaling_factor=0.5)
    save_text_encoder(build_text_encoder(SIZES, tokens=tokens, seed=0), folder)
    unet = build_unet(SIZES, latent_side=8, seed=0)
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    save_unet(unet, folder)
    return FrozenLDM.from_pretrained(folder)


def objective(*, min_snr=None):
    return DiffusionObjective(
        build_unet(SIZES, latent_side=8, seed=0),
        build_text_encoder(SIZES, tokens=600, seed=0),
        alphas_cumprod=sd_scheduler().alphas_cumprod,
        min_snr=min_snr,
    )


def test_the_unet_has_stable_diffusions_sixteen_attention_layers():
    blocks = unet_blocks(build_unet(SIZES, latent_side=8, seed=0))
    assert sorted(blocks) == list(range(1, 17))
    assert [blocks[number].stride for number in (1, 3, 5, 7, 8, 11, 14)] == [1, 2, 4, 8, 4, 2, 1]


def test_equal_seeds_give_equal_networks_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    one, other, third = (build_unet(SIZES, latent_side=8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), third.parameters(), strict=True))


def test_what_is_saved_is_a_frozen_ldm(ldm):
    assert (ldm.latent_channels, ldm.latent_stride, ldm.context_width) == (4, 8, 16)
    z = ldm.encode_images(torch.zeros(2, 3, 64, 64))
    assert z.shape == (2, 4, 8, 8)
    features = ldm.block_features(z, torch.tensor([400, 10]), ldm.encode_prompts(["a", "b"]))
    assert {number: tuple(one.shape) for number, one in features.items()} == {
        number: (2, *shape) for number, shape in ldm.block_shapes(64, 64).items()
    }


def test_the_autoencoders_loss_is_pixels_gradients_and_kl():
    network = build_autoencoder(SIZES, image_side=64, seed=0)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.zeros(2, 4, 8, 8)
    plain = AutoencoderObjective(network, loss=AutoencoderLoss(gradient=0, kl=0))(images, noise)
    whole = AutoencoderObjective(network, loss=AutoencoderLoss(gradient=2, kl=3))(images, noise)
    posterior = network.encode(images).latent_dist
    error = network.decode(posterior.mean).sample - images
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(posterior.mean, posterior.std), torch.distributions.Normal(0.0, 1.0)
    ).mean()
    torch.testing.assert_close(plain["loss"], error.abs().mean())
    torch.testing.assert_close(whole["loss"], plain["loss"] + 2 * edges + 3 * kl)


def test_a_unet_that_estimates_nothing_is_wrong_by_the_noises_own_size():
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    times, tokens = torch.tensor([1, 500, 999]), torch.zeros(3, 77, dtype=torch.long)
    errors = objective().errors(torch.ones(3, 4, 8, 8), noise, times, tokens)
    torch.testing.assert_close(errors, noise.square().mean(dim=(1, 2, 3)))


def test_min_snr_weighs_down_what_is_hardly_noised_and_leaves_the_rest():
    noise = torch.ones(2, 4, 8, 8)
    alphas = sd_scheduler().alphas_cumprod
    inputs = {"latents": noise * 0, "noise": noise, "tokens": torch.zeros(2, 77, dtype=torch.long)}
    early, late = torch.tensor([3, 3]), torch.tensor([800, 800])
    snr = alphas[3] / (1 - alphas[3])
    weighed = objective(min_snr=5.0)
    torch.testing.assert_close(weighed(**inputs, timesteps=early)["loss"], 5 / snr)
    torch.testing.assert_close(weighed(**inputs, timesteps=late)["loss"], torch.tensor(1.0))


def test_a_few_steps_on_one_batch_lower_the_loss():
    network = objective()
    random = torch.Generator().manual_seed(0)
    inputs = {
        "latents": torch.randn(4, 4, 8, 8, generator=random),
        "noise": torch.randn(4, 4, 8, 8, generator=random),
        "timesteps": torch.tensor([100, 300, 600, 900]),
        "tokens": torch.randint(0, 600, (4, 77), generator=random),
    }
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = network(**inputs)["loss"]
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_samples_follow_from_noise_and_caption_alone(ldm):
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def sample(captions, guidance):
        return sample_latents(ldm, captions, noise=noise, steps=3, guidance=guidance)

    one = sample(["a red apple", "an apple"], 3.0)
    assert one.shape == noise.shape
    assert torch.equal(one, sample(["a red apple", "an apple"], 3.0))
    assert not torch.allclose(one[0], sample(["red", "an apple"], 3.0)[0])
    torch.testing.assert_close(sample(["a", "b"], 0.0), sample(["c", "d"], 0.0))  # no caption counts


def test_sampling_gives_back_what_a_perfect_estimate_knows(ldm, monkeypatch):
    clean = torch.full((1, 4, 8, 8), 0.7)

    def perfect(noisy, timesteps, _context):
        alpha = ldm.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()

    monkeypatch.setattr(ldm, "noise_estimate", perfect)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample_latents(ldm, ["x"], noise=noise, steps=5), clean, atol=1e-4, rtol=0)


def test_decoding_undoes_the_scale():
    network = build_autoencoder(SIZES, image_side=64, seed=0).eval()
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network.decode(latents).sample.clamp(-1, 1)
    network.register_to_config(scaling_factor=0.25)
    torch.testing.assert_close(decode_latents(network, latents * 0.25), expected)
