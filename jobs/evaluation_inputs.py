"""What an evaluation was made from, noted beside its results: equal inputs need no second one."""

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

RECORD = "evaluation-inputs.json"
_RESULTS = ("evaluation.json", "report.html")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationInputs:
    """The digest of everything that an evaluation's figures follow from, and the folder of its results."""

    digest: str
    folder: Path

    @classmethod
    def of(cls, recipe: "Recipe") -> Self:
        """Of what `ldznet evaluate` would score now.

        Raises:
            UserError: a system or a set's features are missing.
        """
        from pipeline.cache.spec import canonical_json
        from pipeline.evaluation.run import systems_of
        from pipeline.evaluation.scored_system import locate_system
        from pipeline.models.folder import model_digest
        from pipeline.object_store.opening import open_store
        from pipeline.tracking.config import store_uri
        from pipeline.training.cached_sets import required_manifest

        folder = Path(recipe.output_folder)
        uri = store_uri(recipe.tracking, folder)
        located = [locate_system(system, tracking_uri=uri) for system in systems_of(recipe)]
        store = open_store(recipe.cache.url)
        told = {
            "version": version("ldznet"),
            "evaluate": recipe.evaluate.model_dump(mode="json", exclude={"device"}),
            "validate_on": recipe.validate_on,
            "systems": [
                [
                    one.name,
                    one.family,
                    model_digest(one.folder) if one.family == "network" else _content_digest(one.folder),
                ]
                for one in located
            ],
            "sets": {
                name: required_manifest(store, recipe, name).manifest_id
                for name in {*recipe.scored_sets, *filter(None, [recipe.validate_on])}
            },
        }
        return cls(digest=hashlib.sha256(canonical_json(told).encode()).hexdigest(), folder=folder)

    def were_evaluated(self) -> bool:
        """Whether the results in the folder are of these inputs, and as they were written."""
        try:
            noted = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none, or torn: evaluating again is always right
            return False
        results = [self.folder / name for name in _RESULTS]
        return all(path.is_file() for path in results) and noted == self._record()

    def note(self) -> None:
        """Note that the results in the folder are of these inputs, whole or not at all."""
        written = self.folder / f".{RECORD}"
        written.write_text(json.dumps(self._record(), indent=1) + "\n", encoding="utf-8")
        written.replace(self.folder / RECORD)

    def _record(self) -> dict[str, str]:
        digests = {name: _digest(self.folder / name) for name in _RESULTS}
        return {"inputs": self.digest, **digests}


def _content_digest(folder: Path) -> str:
    """Of all files below a folder."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{path.relative_to(folder).as_posix()}\0{_digest(path)}\n".encode())
    return total.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
