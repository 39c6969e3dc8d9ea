"""Which blocks' phrase and features move the masks of the LD-ZNet that comes with ldznet."""

from collections.abc import Sequence
from pathlib import Path

_SET = "test"


def measure_shipped_influence(
    recipe_file: Path, overrides: Sequence[str], *, command: str, into: Path
) -> None:
    """Measure, and write `influence.json`. Nothing is trained.

    Args:
        recipe_file: of the comparisons, whose features are read.
        overrides: of it.
        command: that does it again, for the record.
        into: folder of the records.
    """
    from jobs.results_preparation import prepared
    from pipeline.recipe_file import load_recipe
    from pipeline.results.experiments import SHIPPED
    from pipeline.results.influence import InfluenceRecord, measure_influence
    from pipeline.results.origin import made_here

    recipe = load_recipe(recipe_file, overrides)
    prepared(recipe)
    phrases, blocks = measure_influence(recipe, SHIPPED, set_name=_SET)
    record = InfluenceRecord(
        command=command,
        recipe_digest=recipe.digest(),
        model=SHIPPED.source,
        set_name=_SET,
        phrases=phrases,
        blocks=blocks,
        **made_here(),
    )
    into.mkdir(parents=True, exist_ok=True)
    path = into / "influence.json"
    if path.is_file():
        before = InfluenceRecord.model_validate_json(path.read_bytes())
        if before.blocks == record.blocks:  # its note speaks of these very figures
            record = record.model_copy(update={"note": before.note})
    path.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
