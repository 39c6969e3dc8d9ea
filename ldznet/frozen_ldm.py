"""The frozen latent diffusion model: image -> z, phrase -> context, noised z + context -> block features."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from torch import Tensor

from ldznet.blocks import PAPER_BLOCKS, Block, check_blocks, unet_blocks
from ldznet.errors import UserError
from ldznet.ldm_folder import Part, read_part_config, resolve_ldm, weight_files
from ldznet.unet_walk import BODY, drop_after, finish_unet, walk_unet

COMPONENTS: tuple[Part, ...] = ("unet", "vae", "text_encoder")
LAST_SD_BLOCK = 16


class FrozenLDM:
    """A frozen Stable Diffusion (1.x or 2.x layout): nothing here trains, nothing here needs gradients.

    `z` and the noise schedule are computed in fp32 whatever `dtype` is; networks run in `dtype`.
    Deterministic: all noise is given from outside. Paper, section 3.
    """

    def __init__(
        self,
        *,
        folder: Path,
        unet: Any | None,
        vae: Any | None,
        text_encoder: Any | None,
        tokenizer: Any | None,
        device: torch.device,
        dtype: torch.dtype,
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        self.folder = folder
        self.unet = unet
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.device = device
        self.dtype = dtype
        self._memory_format = torch.channels_last if channels_last else torch.preserve_format
        for convolutional in (unet, vae):
            if convolutional is not None and channels_last:
                convolutional.to(memory_format=torch.channels_last)
        self._collect: Callable[..., dict[int, Tensor]] = _compiled(_collect) if compiled else _collect
        self._encode: Callable[..., Any] = _compiled(_encode) if compiled else _encode
        self.unet_config = read_part_config(folder, "unet")
        self.vae_config = read_part_config(folder, "vae")
        self._scheduler = _load_scheduler(folder)
        self._alphas_cumprod = self._scheduler.alphas_cumprod.to(device=device, dtype=torch.float32)
        self.blocks: Mapping[int, Block] = (
            unet_blocks(unet) if unet is not None else _blocks_of(self.unet_config)
        )

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        last_block: int = LAST_SD_BLOCK,
        components: Collection[Part] = COMPONENTS,
        channels_last: bool = False,
        compiled: bool = False,
    ) -> Self:
        """Load from a folder in the diffusers layout, or a hub id. Safetensors only.

        Args:
            folder_or_hub_id: folder with `unet`, `vae`, `text_encoder`, `tokenizer`, `scheduler`; or hub id.
            device: where the networks go.
            dtype: what the networks' weights and activations are, fp32 or bf16.
            last_block: up blocks past this one are neither loaded nor held; 16 keeps the whole UNet.
            components: which of `unet`, `vae`, `text_encoder` to load; the others cannot be used then.
            channels_last: run the UNet's and the VAE's convolutions in NHWC: quicker on GPUs, other rounding.
            compiled: `torch.compile` the VAE encoder and the UNet up to the last block asked for, once a batch shape
                and set of blocks (a minute or more): other rounding. Nothing is tuned by measuring, so that runs agree.

        Raises:
            UserError: a missing part, pickle weights only, an unreachable hub id, a block out of range.
        """
        folder, device = resolve_ldm(folder_or_hub_id), torch.device(device)
        unknown = set(components) - set(COMPONENTS)
        if unknown:
            raise UserError(f"unknown LDM component {min(unknown)}; choose from {', '.join(COMPONENTS)}")
        has_text = "text_encoder" in components
        return cls(
            folder=folder,
            unet=_load_unet(folder, device, dtype, last_block) if "unet" in components else None,
            vae=_load_vae(folder, device, dtype) if "vae" in components else None,
            text_encoder=_load_text_encoder(folder, device, dtype) if has_text else None,
            tokenizer=_load_tokenizer(folder) if has_text else None,
            device=device,
            dtype=dtype,
            channels_last=channels_last,
            compiled=compiled,
        )

    @property
    def latent_channels(self) -> int:
        """Channels of `z` (4 for Stable Diffusion)."""
        return int(self.vae_config["latent_channels"])

    @property
    def latent_stride(self) -> int:
        """Pixels per latent position, along one side (8 for Stable Diffusion)."""
        return 2 ** (len(self.vae_config["block_out_channels"]) - 1)

    @property
    def context_width(self) -> int:
        """Width of the text context (768 for SD 1.x, 1024 for SD 2.x)."""
        return int(self.unet_config["cross_attention_dim"])

    @property
    def train_timesteps(self) -> int:
        """Length of the noise schedule (1000 for Stable Diffusion)."""
        return len(self._alphas_cumprod)

    @property
    def alphas_cumprod(self) -> Tensor:
        """The noise schedule, fp32: at timestep t a noised `z` keeps `sqrt(alphas_cumprod[t])` of itself."""
        return self._alphas_cumprod

    def block_shapes(
        self, height_px: int, width_px: int, blocks: Sequence[int] = PAPER_BLOCKS
    ) -> dict[int, tuple[int, int, int]]:
        """`{block: (C, h, w)}` of the features of an image of this size.

        Raises:
            UserError: a side that is no multiple of the UNet's stride in pixels (64 for Stable Diffusion).
        """
        multiple = self.latent_stride * max(block.stride for block in self.blocks.values())
        for side in (height_px, width_px):
            if side <= 0 or side % multiple:
                raise UserError(f"image side {side} px is no multiple of {multiple}")
        shapes = {}
        for number in check_blocks(blocks, self.blocks):
            block = self.blocks[number]
            stride = self.latent_stride * block.stride
            shapes[number] = (block.channels, height_px // stride, width_px // stride)
        return shapes

    @torch.no_grad()
    def encode_images(self, images: Tensor, *, noise: Tensor | None = None) -> Tensor:
        """`B,3,H,W` in [-1,1] -> scaled latents `z` `B,4,H/8,W/8`, fp32.

        Args:
            images: sides are multiples of 8.
            noise: `B,4,H/8,W/8` standard normal, for the published posterior sample `mean + std * noise`;
                None gives the posterior mean.
        """
        vae = self._need(self.vae, "vae")
        posterior = self._encode(vae, self._placed(images)).latent_dist
        latents = posterior.mean.float()
        if noise is not None:
            assert noise.shape == latents.shape, f"noise {tuple(noise.shape)}, latents {tuple(latents.shape)}"
            latents = latents + posterior.std.float() * noise.to(self.device, torch.float32)
        return latents * self.vae_config.get("scaling_factor", 0.18215)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token ids `B,77`, padded and cut to the text encoder's length."""
        tokenizer = self._need(self.tokenizer, "text_encoder")
        encoded = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return encoded.input_ids

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> context `B,77,D` in `dtype`: the text encoder's last hidden state."""
        text_encoder = self._need(self.text_encoder, "text_encoder")
        return text_encoder(self.tokenize(prompts).to(self.device)).last_hidden_state

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noise each `z` to its own timestep: `sqrt(a_t) z + sqrt(1 - a_t) noise`, in fp32.

        Args:
            latents: `B,4,h,w`, scaled.
            noise: `B,4,h,w` standard normal.
            timesteps: `B` integers, 0 .. 999.

        Returns:
            `B,4,h,w` fp32.

        Raises:
            UserError: a timestep outside the schedule.
        """
        alphas = self._alphas_at(timesteps)
        noised = alphas.sqrt() * latents.to(self.device, torch.float32)
        return noised + (1 - alphas).sqrt() * noise.to(self.device, torch.float32)

    @torch.no_grad()
    def block_features(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        context: Tensor,
        blocks: Sequence[int] = PAPER_BLOCKS,
    ) -> dict[int, Tensor]:
        """Outputs of the numbered spatial-attention layers, stopping right after the last one asked for.

        Args:
            noisy_latents: `B,4,h,w` from `add_noise`; h and w multiples of 8.
            timesteps: `B` integers, unequal ones allowed.
            context: `B,77,D`.
            blocks: numbers 1..16.

        Returns:
            `{block: B,C,h_b,w_b}` in `dtype`.

        Raises:
            UserError: no such block, a timestep outside the schedule, a latent side that is no multiple of 8.
        """
        wanted = check_blocks(blocks, self.blocks)
        return self._collect(*self._walk_inputs(noisy_latents, timesteps, context), wanted)

    @torch.no_grad()
    def noise_estimate(self, noisy_latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """The whole UNet's estimate of the noise in `noisy_latents`, `B,4,h,w` fp32.

        A v-prediction UNet's output is turned into the noise it implies.

        Raises:
            UserError: the LDM was loaded with `last_block` below the UNet's last.
        """
        unet = self._need(self.unet, "unet")
        if unet.conv_out is None:
            raise UserError("the noise estimate needs the whole UNet: load the LDM with last_block=16")
        body = dict(walk_unet(*self._walk_inputs(noisy_latents, timesteps, context)))[BODY]
        output, noisy = finish_unet(unet, body).float(), noisy_latents.to(self.device, torch.float32)
        alphas = self._alphas_at(timesteps)
        kind = self._scheduler.config.prediction_type
        if kind == "v_prediction":
            return alphas.sqrt() * output + (1 - alphas).sqrt() * noisy
        if kind == "sample":
            return (noisy - alphas.sqrt() * output) / (1 - alphas).sqrt()
        return output

    def _walk_inputs(
        self, noisy_latents: Tensor, timesteps: Tensor, context: Tensor
    ) -> tuple[Any, Tensor, Tensor, Tensor]:
        unet = self._need(self.unet, "unet")
        multiple = max(block.stride for block in self.blocks.values())
        if any(side % multiple for side in noisy_latents.shape[-2:]):
            raise UserError(
                f"latents of {tuple(noisy_latents.shape[-2:])}: sides must be multiples of {multiple}"
            )
        steps = self._check_timesteps(timesteps)
        return unet, self._placed(noisy_latents), steps, context.to(self.device, self.dtype)

    def _placed(self, images: Tensor) -> Tensor:
        """`B,C,H,W` where and as the networks take it."""
        return images.to(self.device, self.dtype, memory_format=self._memory_format)

    def _alphas_at(self, timesteps: Tensor) -> Tensor:
        return self._alphas_cumprod[self._check_timesteps(timesteps)].view(-1, 1, 1, 1)

    def _check_timesteps(self, timesteps: Tensor) -> Tensor:
        # Where they lie: looking at timesteps on a GPU would wait for all that was launched before.
        if timesteps.numel() and (int(timesteps.min()) < 0 or int(timesteps.max()) >= self.train_timesteps):
            bad = next(int(t) for t in timesteps.flatten() if not 0 <= t < self.train_timesteps)
            raise UserError(f"timestep {bad} is out of range; the schedule has 0..{self.train_timesteps - 1}")
        return timesteps.to(self.device, torch.long)

    @staticmethod
    def _need(part: Any | None, name: str) -> Any:
        if part is None:
            raise UserError(f"the LDM was loaded without its '{name}'; name it in components")
        return part


def _collect(
    unet: Any, noisy: Tensor, timesteps: Tensor, context: Tensor, wanted: Sequence[int]
) -> dict[int, Tensor]:
    features: dict[int, Tensor] = {}
    for number, hidden in walk_unet(unet, noisy, timesteps, context):
        if number in wanted:
            features[number] = hidden
        if number == wanted[-1]:
            break
    return features


def _encode(vae: Any, images: Tensor) -> Any:
    return vae.encode(images)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """One graph a shape. Deterministic: choices that change rounding are not made by measuring."""
    return torch.compile(
        function, fullgraph=True, dynamic=False, options={"deterministic": True, "max_autotune": False}
    )


def _freeze(module: Any, device: torch.device) -> Any:
    return module.to(device=device).eval().requires_grad_(requires_grad=False)


def _check_complete(folder: Path, part: Part, info: Mapping[str, Any]) -> None:
    """A tensor that the file lacks would be random: refuse."""
    for fault in ("missing_keys", "mismatched_keys", "error_msgs"):
        names = sorted(str(name) for name in info[fault])
        if names:
            raise UserError(
                f"LDM folder {folder}: '{part}' weights do not fit its config.json: {fault} {names[0]}"
            )


def _empty_unet(config: Mapping[str, Any]) -> Any:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel.from_config(dict(config))


def _blocks_of(unet_config: Mapping[str, Any]) -> dict[int, Block]:
    return unet_blocks(_empty_unet(unet_config))


def _load_unet(folder: Path, device: torch.device, dtype: torch.dtype, last_block: int) -> Any:
    """Build on `meta`, drop what is not needed, then read only the tensors that are left."""
    unet = _empty_unet(read_part_config(folder, "unet"))
    blocks = unet_blocks(unet)
    check_blocks([last_block], blocks)
    if last_block < max(blocks):
        drop_after(unet, blocks[last_block].path)
    with ExitStack() as files:
        where = {}
        for path in weight_files(folder, "unet"):
            file = files.enter_context(safe_open(path, framework="pt"))
            where.update(dict.fromkeys(file.keys(), file))
        state = {}
        for name, expected in unet.state_dict().items():
            if name not in where:
                raise UserError(
                    f"LDM folder {folder}: 'unet' has no tensor '{name}', which its config.json needs"
                )
            tensor = where[name].get_tensor(name)
            if tensor.shape != expected.shape:
                raise UserError(
                    f"LDM folder {folder}: 'unet' tensor '{name}' is {tuple(tensor.shape)},"
                    f" config.json needs {tuple(expected.shape)}"
                )
            state[name] = tensor.to(device=device, dtype=dtype)
    unet.load_state_dict(state, assign=True)
    return _freeze(unet, device)


def _load_vae(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    from diffusers import AutoencoderKL

    vae, info = AutoencoderKL.from_pretrained(
        folder / "vae",
        use_safetensors=True,
        torch_dtype=dtype,
        low_cpu_mem_usage=False,
        output_loading_info=True,
    )
    _check_complete(folder, "vae", info)
    vae.decoder = vae.post_quant_conv = None  # only the encoder is used
    return _freeze(vae, device)


def _load_text_encoder(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    from transformers import CLIPTextModel

    with _quiet_transformers():
        encoder, info = CLIPTextModel.from_pretrained(
            folder / "text_encoder",
            use_safetensors=True,
            dtype=dtype,
            attn_implementation="sdpa",
            local_files_only=True,
            output_loading_info=True,
        )
    _check_complete(folder, "text_encoder", info)
    return _freeze(encoder, device)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bar for a load that takes a second, in every worker's log."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _load_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)


def _load_scheduler(folder: Path) -> Any:
    """The training schedule: betas and prediction type, from any of Stable Diffusion's schedulers."""
    from diffusers import DDPMScheduler

    wanted = (
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "prediction_type",
    )
    config = read_part_config(folder, "scheduler")
    kept = {key: config[key] for key in (*wanted, "rescale_betas_zero_snr") if key in config}
    return DDPMScheduler(**kept)
