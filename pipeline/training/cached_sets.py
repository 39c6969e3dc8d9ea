"""Which manifests of the cache a training reads: found once, by its driver, and read so by all its ranks."""

from typing import Self

from ldznet.config import Config
from ldznet.errors import UserError
from pipeline.cache.manifest import Manifest, find_manifest, read_manifest
from pipeline.object_store.store import ObjectStore
from pipeline.recipe import Recipe


def required_manifest(store: ObjectStore, recipe: Recipe, set_name: str) -> Manifest:
    """The manifest of a set.

    Raises:
        UserError: nothing was computed for it yet.
    """
    manifest = find_manifest(store, recipe.request_digest(set_name))
    if manifest is None:
        raise UserError(
            f"{store.url} holds no features of the set {set_name!r} as this recipe asks for them: "
            "run `ldznet precompute` with the same recipe and overrides first"
        )
    return manifest


class CachedSets(Config):
    """The sets of a training that the cache holds, by manifest.

    A `precompute` that ends beside a training answers its requests anew. Ranks that looked for themselves, each at its
    own start, could read different manifests, and one that was lost could not go on where it was.
    """

    manifests: dict[str, tuple[str, str]]  # set -> cache key, manifest id

    @classmethod
    def find(cls, recipe: Recipe, store: ObjectStore) -> Self:
        """What the cache has now of the sets that train and validate.

        Raises:
            UserError: one is not there, and its features are not to be computed online.
        """
        names = [name for name in (recipe.train_on, recipe.validate_on) if name is not None]
        if recipe.train.features == "cached":
            found: dict[str, Manifest | None] = {
                name: required_manifest(store, recipe, name) for name in names
            }
        else:
            found = {name: find_manifest(store, recipe.request_digest(name)) for name in names}
        return cls(
            manifests={
                name: (manifest.cache_key, manifest.manifest_id)
                for name, manifest in found.items()
                if manifest is not None
            }
        )

    def read(self, store: ObjectStore, set_name: str) -> Manifest | None:
        """A set's manifest; None where its features are to be computed online.

        Raises:
            UserError: it is not there any more.
        """
        if set_name not in self.manifests:
            return None
        cache_key, manifest_id = self.manifests[set_name]
        return read_manifest(store, cache_key=cache_key, manifest_id=manifest_id)
