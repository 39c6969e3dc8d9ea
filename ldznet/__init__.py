"""The science of LD-ZNet: one process, one device, no cluster."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldznet.frozen_ldm import FrozenLDM
    from ldznet.modeling import LDZNet
    from ldznet.predictor import Predictor
    from ldznet.scores import SegmentationScores

__all__ = ["FrozenLDM", "LDZNet", "Predictor", "SegmentationScores"]

_PLACES = {
    "FrozenLDM": "ldznet.frozen_ldm",
    "LDZNet": "ldznet.modeling",
    "Predictor": "ldznet.predictor",
    "SegmentationScores": "ldznet.scores",
}


def __getattr__(name: str) -> Any:
    """The public classes, imported when they are first asked for: torch takes seconds."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
