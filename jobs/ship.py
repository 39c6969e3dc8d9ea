"""Put a trained LDM or network into the package, for releases: python -m jobs.ship FOLDER NAME."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.entry import exit_code_of

logger = logging.getLogger("jobs.ship")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments and ship."""
    parser = argparse.ArgumentParser(prog="python -m jobs.ship", description=(__doc__ or "").strip())
    parser.add_argument("folder", type=Path, help="OUTPUT/show/ldm of a pretraining, or a model folder")
    parser.add_argument("name", help="builtin:NAME is what recipes will say")
    arguments = parser.parse_args(argv)

    def act() -> None:
        from pipeline.models.shipping import ship_model

        place = ship_model(arguments.folder, name=arguments.name)
        size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        logger.info("builtin:%s: %.1f MB in %s", arguments.name, size / 1e6, place)

    return exit_code_of(act)


if __name__ == "__main__":
    sys.exit(main())
