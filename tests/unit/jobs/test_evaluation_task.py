"""Networks that lie in the storage while a GPU scores them: what killed evaluations left goes, others stay."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from jobs.evaluation_task import sweep_shared
from pipeline.object_store.opening import open_store
from pipeline.recipe_file import load_recipe


def test_what_a_killed_evaluation_left_goes_the_next_day(small_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(small_recipe())
    assert sweep_shared(recipe) == 0
    store = open_store(f"{recipe.storage_url}/evaluated")
    for name in ("old/config.json", "old/model.safetensors", "new/config.json"):
        store.put(name, b"{}")
    for file in Path(recipe.output_folder).rglob("evaluated/old/*"):
        os.utime(file, (time.time() - 25 * 3600,) * 2)
    assert sweep_shared(recipe) == 2
    assert [info.key for info in store.list()] == ["new/config.json"]
