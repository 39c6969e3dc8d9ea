"""`ldznet import CHECKPOINT`: the authors' LD-ZNet, or Stable Diffusion v1, into a folder of ours."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.entry import exit_code_of

_DESCRIPTION = """\
Turn a checkpoint into a folder that the other commands take. Nothing in the file is executed.

An LD-ZNet or ZNet checkpoint becomes a model folder (EMA weights where it has them). Its frozen LDM is either one
that you have, or the one inside the checkpoint:
  ldznet import last.ckpt --out models/ldznet --ldm CompVis/stable-diffusion-v1-4
  ldznet import last.ckpt --out models/ldznet --ldm-out models/sd14
A Stable Diffusion v1 checkpoint in its original format becomes a frozen LDM, for --ldm and recipes:
  ldznet import sd-v1-4.ckpt --out models/sd14"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments and import."""
    parser = argparse.ArgumentParser(
        prog="ldznet import", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help=".ckpt, .pt, .pth or .safetensors")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not be there yet")
    parser.add_argument("--ldm", help="the network's frozen LDM, diffusers layout: a folder or a hub id")
    parser.add_argument("--ldm-out", type=Path, help="folder for the frozen LDM inside the checkpoint")
    parser.add_argument(
        "--tokenizer",
        help="folder or hub id of CLIP's tokenizer, which a frozen LDM needs (default: the hub's)",
    )
    parser.add_argument(
        "--unet-config", type=Path, metavar="FILE.json", help="the UNet's sizes, if not SD v1's"
    )
    parser.add_argument(
        "--resize",
        choices=("squash", "aspect"),
        default="squash",
        help="how `segment` brings photos to the network's size: as in the tables, or as in the authors' demo",
    )
    arguments = parser.parse_args(argv)
    return exit_code_of(lambda: import_into_folder(arguments))


def import_into_folder(arguments: argparse.Namespace) -> None:
    """Import, and say what came of it and what to type next."""
    from ldznet.importer_ldm import CLIP_TOKENIZER
    from ldznet.importer_model import import_model

    done = import_model(
        arguments.checkpoint,
        arguments.out,
        unet_config=arguments.unet_config,
        ldm=arguments.ldm,
        ldm_out=arguments.ldm_out,
        tokenizer=arguments.tokenizer or CLIP_TOKENIZER,
        resize=arguments.resize,
    )
    lines = [str(done.report)]
    prediction = done.prediction
    if prediction is None:
        lines.append(
            f"use it as ldm.source in a recipe, or: ldznet import NETWORK.ckpt --out DIR --ldm {arguments.out}"
        )
    else:
        lines.append(
            f"photos at {prediction.size} px ({prediction.resize}), timestep {prediction.timestep}, "
            f"threshold {prediction.threshold:g}: {arguments.out}/prediction.json"
        )
        told = "" if prediction.ldm_source else " --ldm LDM"
        if prediction.ldm_source is None:
            lines.append("its frozen LDM is not known: name it with --ldm wherever the model is used")
        lines.append(f"ldznet segment PHOTO.jpg 'the red apple' --model {arguments.out}{told}")
    print("\n".join(lines))  # noqa: T201 - the command's result


if __name__ == "__main__":
    sys.exit(main())
