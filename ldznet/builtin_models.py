"""Models that come with the package, under `ldznet/weights/`: `builtin:NAME` stands for their folder."""

from pathlib import Path

from ldznet.errors import UserError

PREFIX = "builtin:"
DEFAULT_LDM = "builtin:scenes-128"
DEFAULT_MODEL = "builtin:scenes-128-ldznet"  # what segments where no model is named
WEIGHTS = Path(__file__).parent / "weights"


def builtin_names() -> tuple[str, ...]:
    """The models that there are."""
    return tuple(sorted(path.name for path in WEIGHTS.glob("*") if path.is_dir()))


def builtin_folder(source: str) -> Path | None:
    """The folder that `builtin:NAME` stands for; None where `source` is no such word.

    Raises:
        UserError: no model of that name comes with the package.
    """
    if not source.startswith(PREFIX):
        return None
    name = source.removeprefix(PREFIX)
    if name not in builtin_names():
        there = ", ".join(PREFIX + one for one in builtin_names()) or "none"
        raise UserError(f"no model {source!r} comes with ldznet; there is {there}")
    return WEIGHTS / name
