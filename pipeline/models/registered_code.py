"""What MLflow runs to serve a registered model. It lies in the artifact as text: nothing is pickled.

It imports nothing of this package but `ldznet`, whose source lies in the artifact too.
"""

import base64
import binascii
import io
import os
import threading
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]  # no stubs
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from ldznet.errors import DataFault, UserError
from ldznet.images import decode_image
from ldznet.predictor import Predictor


class PhraseSegmenter(PythonModel):
    """A table with `image` and `phrase` in, one mask a row out.

    The frozen LDM is the folder that the model folder names, unless `LDZNET_LDM` or
    `load_model(…, model_config={"ldm": FOLDER})` names another. With `model_config={"paths": True}` an image may be a
    file's path; without, a client of `mlflow models serve` has nothing opened on the server.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the network and its LDM."""
        config = context.model_config or {}
        ldm = config.get("ldm") or os.environ.get("LDZNET_LDM")
        self._paths = bool(config.get("paths", False))
        self._predictor = Predictor.from_pretrained(context.artifacts["model"], ldm=ldm)
        # The scoring server answers each request in a thread of its own, and a predictor holds one photo.
        self._one_at_a_time = threading.Lock()

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 - MLflow's interface
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """Segment each row's phrase in its image. May be called from several threads.

        Args:
            context: Unused.
            model_input: `image`: the file's bytes, or the same as base64 text; `phrase`: text.
            params: Unused.

        Returns:
            In the rows' order: `mask_png`, the mask at the image's own size as a base64 PNG (255 is inside),
            and `area`, its share of the image.

        Raises:
            MlflowException: an image that is none; the scoring server answers 400 with its text.
        """
        masks: dict[Any, tuple[str, float]] = {}
        table = model_input.reset_index(drop=True)
        # Each image once, however many phrases ask about it.
        for image, rows in table.groupby("image", sort=False, dropna=False):
            try:
                photo = decode_image(image_bytes(image, paths=self._paths))
            except (UserError, DataFault) as error:
                raise MlflowException.invalid_parameter_value(str(error)) from error
            with self._one_at_a_time:
                self._predictor.set_image(photo)
                predictions = self._predictor.predict(rows["phrase"].tolist())
            for row, prediction in zip(rows.index, predictions, strict=True):
                masks[row] = (png_text(prediction.mask), float(prediction.mask.mean()))
        return pd.DataFrame([masks[row] for row in table.index], columns=["mask_png", "area"])


def image_bytes(image: Any, *, paths: bool) -> bytes:
    """The bytes of an image given as such, as base64 or, where allowed, as a path."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if not isinstance(image, str):
        raise UserError(f"image is {type(image).__name__}: give a file's bytes, or the same as base64")
    try:
        return base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError) as error:  # no base64
        if not paths:
            raise UserError("image is no base64: give a file's bytes, or the same as base64") from error
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
