"""`ldznet segment IMAGE PHRASE…`: mask and overlay of each phrase in a photo."""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.arguments import file_names, make_writable, whole_numbers
from jobs.entry import exit_code_of
from ldznet.builtin_models import DEFAULT_MODEL
from ldznet.errors import DataFault, UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger("jobs.segment")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments and segment."""
    parser = argparse.ArgumentParser(prog="ldznet segment", description="Masks of phrases in a photo.")
    parser.add_argument("image", type=Path, help="a photo: JPEG, PNG, WebP, BMP or TIFF")
    parser.add_argument(
        "phrases", nargs="+", metavar="PHRASE", help="what to segment, such as 'the red apple'"
    )
    parser.add_argument(
        "--model",
        help=f"a model folder, or models:/NAME@ALIAS from MLflow's registry (default: {DEFAULT_MODEL}, a small one of "
        "drawn scenes that comes with ldznet)",
    )
    parser.add_argument("--ldm", help="the frozen LDM, if it does not lie where it lay in training")
    parser.add_argument(
        "--tracking-uri", help="where models:/ references are looked up (default: MLFLOW_TRACKING_URI)"
    )
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the pictures (default: here)")
    parser.add_argument("--threshold", type=float, help="on the sigmoid, 0..1 (default: the model's own)")
    parser.add_argument(
        "--resize",
        choices=("squash", "aspect"),
        help="to the network's size: a square as in the tables, or the photo's aspect kept (default: the model's own)",
    )
    parser.add_argument(
        "--timesteps",
        type=whole_numbers,
        metavar="T,T…",
        help="noise levels 0..999 to average over, such as 300,400,500",
    )
    parser.add_argument(
        "--seeds", type=whole_numbers, metavar="S,S…", help="seeds to average over, such as 0,1,2"
    )
    parser.add_argument(
        "--probability",
        action="store_true",
        help="write the sigmoid too: STEM-PHRASE.npy, float32, the photo's size",
    )
    arguments = parser.parse_args(argv)
    return exit_code_of(lambda: segment(arguments))


def segment(arguments: argparse.Namespace) -> None:
    """Write `STEM-PHRASE-mask.png` and `-overlay.png` for each phrase; print area and time."""
    from ldznet.images import decode_image
    from ldznet.predictor import Predictor
    from pipeline.models.registered import resolve_model
    from pipeline.pictures import overlay_mask

    if arguments.threshold is not None and not 0 < arguments.threshold < 1:
        raise UserError(f"--threshold {arguments.threshold} lies outside (0, 1)")
    try:
        photo = decode_image(arguments.image.read_bytes())
    except OSError as error:
        raise UserError(f"the photo {arguments.image} cannot be read: {error.strerror or error}") from error
    except DataFault as fault:
        raise UserError(f"{arguments.image}: {fault}") from fault
    if not all(phrase.strip() for phrase in arguments.phrases):
        raise UserError("an empty phrase names nothing: say what to segment, such as 'the red apple'")
    make_writable(arguments.out)
    if arguments.model is None:
        logger.warning("no --model: %s, a small one that knows drawn scenes, not photos", DEFAULT_MODEL)
    model = resolve_model(arguments.model or DEFAULT_MODEL, tracking_uri=arguments.tracking_uri)
    predictor = Predictor.from_pretrained(model, ldm=arguments.ldm)
    started = time.perf_counter()
    predictor.set_image(photo, resize=arguments.resize)
    predictions = predictor.predict(
        arguments.phrases,
        timesteps=arguments.timesteps,
        seeds=arguments.seeds,
        threshold=arguments.threshold,
    )
    seconds = (time.perf_counter() - started) / len(predictions)
    names = file_names(arguments.image.stem, arguments.phrases)
    for prediction, name in zip(predictions, names, strict=True):
        _save_mask(arguments.out / f"{name}-mask.png", prediction.mask)
        overlay_mask(photo, prediction.mask).save(arguments.out / f"{name}-overlay.png")
        if arguments.probability:
            _save_probability(arguments.out / f"{name}.npy", prediction.probability)
        print(  # noqa: T201 - the command's result
            f"{prediction.phrase}: {prediction.area:.1%} of the photo, {seconds:.2f} s a phrase "
            f"-> {arguments.out / name}-mask.png, -overlay.png{', .npy' if arguments.probability else ''}"
        )


def _save_mask(path: Path, mask: "NDArray[np.bool_]") -> None:
    from PIL import Image

    Image.fromarray(mask).save(path)


def _save_probability(path: Path, probability: "NDArray[np.float32]") -> None:
    import numpy as np

    np.save(path, probability, allow_pickle=False)


if __name__ == "__main__":
    sys.exit(main())
