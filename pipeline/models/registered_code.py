"""What MLflow runs to serve a registered model. It lies in the artifact as text: nothing is pickled.

It imports nothing of this package but `ldznet`, whose source lies in the artifact too.
"""

import base64
import binascii
import io
import os
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]  # no stubs
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from ldznet.errors import UserError
from ldznet.images import decode_image
from ldznet.predictor import Predictor


class PhraseSegmenter(PythonModel):
    """A table with `image` and `phrase` in, one mask a row out.

    The frozen LDM is the folder that the model folder names, unless `LDZNET_LDM` or
    `load_model(…, model_config={"ldm": FOLDER})` names another.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the network and its LDM."""
        ldm = (context.model_config or {}).get("ldm") or os.environ.get("LDZNET_LDM")
        self._predictor = Predictor.from_pretrained(context.artifacts["model"], ldm=ldm)

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 - MLflow's interface
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """Segment each row's phrase in its image.

        Args:
            context: Unused.
            model_input: `image`: the file's bytes, the same as base64 text, or a path; `phrase`: text.
            params: Unused.

        Returns:
            In the rows' order: `mask_png`, the mask at the image's own size as a base64 PNG (255 is inside),
            and `area`, its share of the image.
        """
        masks: dict[Any, tuple[str, float]] = {}
        # Each image once, however many phrases ask about it.
        for image, rows in model_input.groupby("image", sort=False):
            self._predictor.set_image(decode_image(image_bytes(image)))
            predictions = self._predictor.predict(rows["phrase"].tolist())
            for row, prediction in zip(rows.index, predictions, strict=True):
                masks[row] = (png_text(prediction.mask), float(prediction.mask.mean()))
        return pd.DataFrame([masks[row] for row in model_input.index], columns=["mask_png", "area"])


def image_bytes(image: bytes | str) -> bytes:
    """The bytes of an image given as such, as base64, or as a path."""
    if not isinstance(image, str):
        return bytes(image)
    try:
        return base64.b64decode(image, validate=True)
    except binascii.Error:
        pass  # no base64, so a path
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise UserError(
            f"image is neither base64 nor a file that can be read: {image[:80]!r} ({error.strerror})"
        ) from error


def png_text(mask: Any) -> str:
    """A mask `H,W` as a base64 PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(mask).convert("L").save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


set_model(PhraseSegmenter())
