"""What a precompute and training on it will take: samples, bytes, requests, hours, and when caching pays."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.entry import exit_code_of

SECONDS = 15.0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments and plan."""
    parser = argparse.ArgumentParser(
        prog="ldznet plan",
        description=f"{__doc__} Reads annotations and what the cache holds; writes nothing to it.",
        epilog="Prices: ldznet plan mine.yaml plan.prices.gpu_hour=2.5 plan.prices.storage_gb_month=0.023",
    )
    parser.add_argument("recipe", type=Path, help="a recipe file (YAML), such as jobs/recipes/scenes.yaml")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="overrides, such as cache.workers=8")
    parser.add_argument(
        "--calibrate",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="time the recipe's own work here first; without it there are counts and bytes, no hours (default: on)",
    )
    parser.add_argument(
        "--seconds",
        type=_positive,
        default=SECONDS,
        help=f"what the calibration may take, about; slow networks take longer (default: {SECONDS:g})",
    )
    parser.add_argument("--json", action="store_true", help="the plan as JSON; _s are seconds")
    arguments = parser.parse_intermixed_args(argv)
    return exit_code_of(lambda: plan(arguments))


def plan(arguments: argparse.Namespace) -> None:
    """Print the plan of a recipe."""
    from dataclasses import asdict

    from pipeline.object_store.opening import open_store
    from pipeline.planning.cost_plan import make_cost_plan
    from pipeline.planning.cost_table import cost_table
    from pipeline.recipe_file import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    seconds = arguments.seconds if arguments.calibrate else None
    made = make_cost_plan(recipe, store=open_store(recipe.cache.url), seconds=seconds)
    print(json.dumps(asdict(made), indent=2) if arguments.json else cost_table(made))  # noqa: T201 - what was asked for


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no positive number of seconds")
    return value


if __name__ == "__main__":
    sys.exit(main())
