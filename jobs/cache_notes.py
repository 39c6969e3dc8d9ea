"""The caches that a job reads, for what is noted of it on the cluster (`jobs.job_notes`)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.recipe import Recipe


def cache_keys(recipe: "Recipe", sets: "Iterable[str | None]") -> dict[str, str]:
    """`cache_key.SET` -> key of its cache, for those sets that have one. None in place of a set is left out."""
    from pipeline.cache.manifest import find_answer
    from pipeline.object_store.opening import open_store

    store = open_store(recipe.cache.url)
    names = sorted({name for name in sets if name is not None})
    answers = {name: find_answer(store, recipe.request_digest(name)) for name in names}
    return {f"cache_key.{name}": answer.cache_key for name, answer in answers.items() if answer is not None}
