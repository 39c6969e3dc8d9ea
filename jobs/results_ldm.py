"""What the latent diffusion model that comes with ldznet can do: samples, reconstructions, errors of its estimates."""

import json
from pathlib import Path


def show_shipped_ldm(recipe: Path, *, command: str, into: Path) -> None:
    """Measure it, and write `ldm.json`, `samples.jpg` and `reconstructions.jpg`. Its curves are of its training.

    Args:
        recipe: that it was trained by.
        command: that does it again, for the record.
        into: folder of the records.
    """
    from ldznet.builtin_models import DEFAULT_LDM
    from pipeline.pretraining.recipe_file import load_pretrain_recipe
    from pipeline.pretraining.show import show_ldm
    from pipeline.results.origin import made_here

    shown = show_ldm(DEFAULT_LDM, load_pretrain_recipe(recipe))
    into.mkdir(parents=True, exist_ok=True)
    shown.samples.save(into / "samples.jpg", quality=88)
    shown.reconstructions.save(into / "reconstructions.jpg", quality=88)
    record = {"model": DEFAULT_LDM, "command": command, "minutes": {}, **shown.facts, **made_here()}
    (into / "ldm.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
