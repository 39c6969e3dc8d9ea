"""How a saved network is to be used on photos: written beside its weights, read by the predictor."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from ldznet.config import Config
from ldznet.errors import UserError
from ldznet.prompts import DEFAULT_TEMPLATE

FILE_NAME = "prediction.json"
# `squash`: the square of the tables' protocol. `aspect`: as in the authors' demo, the photo's aspect kept.
Resize = Literal["squash", "aspect"]


class PredictionConfig(Config):
    """Everything besides weights that a prediction depends on. All of it fixed, so predictions repeat."""

    # Folder or hub id of the frozen LDM that the network was trained on, and the digest of its weights and
    # configuration: another LDM is refused. None where an import was not told which it was.
    ldm_source: str | None
    ldm_digest: str | None
    size: int = Field(
        default=384, ge=64, multiple_of=64
    )  # px: the network's input has this side, or this area
    resize: Resize = "squash"
    timestep: int = Field(default=400, ge=0, lt=1000)
    template: str = DEFAULT_TEMPLATE
    seed: int = 0
    threshold: float = Field(default=0.5, gt=0, lt=1)  # on the sigmoid; training writes the one chosen on val
    compute_dtype: Literal["fp32", "bf16"] = "fp32"

    def save(self, folder: Path) -> None:
        """Write the configuration into a model folder."""
        (folder / FILE_NAME).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "PredictionConfig":
        """Read it from a model folder.

        Raises:
            UserError: the folder is no model folder of this project.
        """
        path = folder / FILE_NAME
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{folder} is not a model folder of this project: it has no {FILE_NAME}"
            ) from None
        except ValidationError as error:
            raise UserError(f"{path} cannot be read: {error.errors()[0]['msg']}") from error
