"""`ldznet noise-map IMAGE PHRASE…`: where a phrase changes the frozen LDM's noise estimate, as a heat map."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.arguments import file_names, make_writable, whole_numbers
from jobs.entry import exit_code_of
from ldznet.builtin_models import DEFAULT_LDM
from ldznet.errors import DataFault, UserError

logger = logging.getLogger("jobs.noise_map")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments and make the maps."""
    parser = argparse.ArgumentParser(
        prog="ldznet noise-map",
        description="Heat maps of |noise estimate given the phrase - noise estimate given nothing| (paper, figure 1).",
    )
    parser.add_argument("image", type=Path, help="a photo: JPEG, PNG, WebP, BMP or TIFF")
    parser.add_argument("phrases", nargs="+", metavar="PHRASE", help="such as 'the red apple'")
    parser.add_argument(
        "--ldm",
        help=f"the frozen LDM: a folder in the diffusers layout, or a hub id (default: {DEFAULT_LDM}, a small one of "
        "drawn scenes that comes with ldznet)",
    )
    parser.add_argument(
        "--size",
        type=int,
        help="side in px at which the LDM sees the photo, a multiple of 64 (default: what it was trained at)",
    )
    parser.add_argument(
        "--timesteps",
        type=whole_numbers,
        default=(300, 400, 500),
        metavar="T,T…",
        help="noise levels 0..999 to average over (default: 300,400,500)",
    )
    parser.add_argument(
        "--seeds",
        type=whole_numbers,
        default=(0, 1, 2, 3),
        metavar="S,S…",
        help="draws of the noise to average over (default: 0,1,2,3)",
    )
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the pictures (default: here)")
    arguments = parser.parse_args(argv)
    return exit_code_of(lambda: noise_map(arguments))


def noise_map(arguments: argparse.Namespace) -> None:
    """Write `STEM-PHRASE-noise.png` for each phrase."""
    import torch
    from PIL import Image

    from ldznet.frozen_ldm import FrozenLDM
    from ldznet.images import decode_image, to_tensor
    from ldznet.noise_map import NoiseMaps
    from ldznet.noise_map_config import NoiseMapConfig
    from ldznet.prompts import DEFAULT_TEMPLATE, fill
    from pipeline.pictures import overlay_heat, side_by_side

    if arguments.size is not None and (arguments.size <= 0 or arguments.size % 64):
        raise UserError(f"--size {arguments.size} is no multiple of 64")
    if not all(phrase.strip() for phrase in arguments.phrases):
        raise UserError("an empty phrase names nothing: say what to look for, such as 'the red apple'")
    try:
        photo = decode_image(arguments.image.read_bytes())
    except OSError as error:
        raise UserError(f"the photo {arguments.image} cannot be read: {error.strerror or error}") from error
    except DataFault as fault:
        raise UserError(f"{arguments.image}: {fault}") from fault
    make_writable(arguments.out)
    if arguments.ldm is None:
        logger.warning("no --ldm: %s, a small one that knows drawn scenes, not photos", DEFAULT_LDM)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ldm = FrozenLDM.from_pretrained(arguments.ldm or DEFAULT_LDM, device=device)
    config = NoiseMapConfig(timesteps=arguments.timesteps, seeds=arguments.seeds)
    size = arguments.size or ldm.unet_config.get("sample_size", 64) * ldm.latent_stride
    view = photo.resize((size, size), Image.Resampling.BILINEAR)
    latents = ldm.encode_images(to_tensor(view).unsqueeze(0))  # 1,4,h,w
    context = ldm.encode_prompts([fill(DEFAULT_TEMPLATE, phrase.strip()) for phrase in arguments.phrases])
    maps = NoiseMaps(ldm=ldm, config=config).maps(latents.expand(len(context), -1, -1, -1), context)
    names = file_names(arguments.image.stem, arguments.phrases)
    for phrase, values, name in zip(arguments.phrases, maps[:, 0].cpu().numpy(), names, strict=True):
        picture = side_by_side([(arguments.image.name, photo), (phrase, overlay_heat(photo, values))])
        path = arguments.out / f"{name}-noise.png"
        picture.save(path)
        print(f"{phrase} -> {path}")  # noqa: T201 - the command's result


if __name__ == "__main__":
    sys.exit(main())
