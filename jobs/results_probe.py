"""Figure 4 of the paper on the latent diffusion model that comes with ldznet."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path


def probe_shipped_ldm(recipe_file: Path, overrides: Sequence[str], *, command: str, into: Path) -> None:
    """Probe every block at every timestep, and write `probe.json`, `probe.csv` and `probe.png`.

    Args:
        recipe_file: by which.
        overrides: of the recipe.
        command: that does it again, for the record.
        into: folder of the records.
    """
    import json
    import shutil

    from jobs.probe import probe
    from jobs.results_preparation import prepared
    from pipeline.recipe_file import load_recipe
    from pipeline.results.origin import made_here

    recipe = load_recipe(recipe_file, overrides)
    minutes = prepared(recipe)
    folder = minutes.of("probe", partial(probe, recipe))
    into.mkdir(parents=True, exist_ok=True)
    same = (into / "probe.csv").is_file() and (into / "probe.csv").read_bytes() == (
        folder / "probe.csv"
    ).read_bytes()
    before = json.loads((into / "probe.json").read_text(encoding="utf-8")) if same else {}
    for name in ("probe.csv", "probe.png"):
        shutil.copyfile(folder / name, into / name)
    record = {
        "command": command,
        "recipe_digest": recipe.digest(),
        "minutes": {station: round(taken, 1) for station, taken in minutes.taken.items()},
        **made_here(),
    }
    if "note" in before:  # it speaks of these very figures
        record["note"] = before["note"]
    (into / "probe.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
