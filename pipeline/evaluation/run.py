"""An evaluation as a whole: every system on every set, thresholds chosen on the validation set."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ldznet.config import Config
from ldznet.errors import UserError
from ldznet.score_results import Scores
from ldznet.scores import SegmentationScores
from pipeline.cache.lease import reading_lease
from pipeline.cache.manifest import Manifest
from pipeline.evaluation.mask_folder import file_stem
from pipeline.evaluation.original_samples import OriginalSamples
from pipeline.evaluation.paper_rows import PaperRow, paper_rows
from pipeline.evaluation.scored_system import LocatedSystem, ScoredSystem, locate_system, open_system
from pipeline.evaluation.scoring import Example, Protocol, ScoredPhrase, ScoredSet, score_protocols
from pipeline.evaluation.table import results_table
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore
from pipeline.recipe import Recipe, SystemConfig
from pipeline.tracking.config import store_uri
from pipeline.training.cached_sets import required_manifest
from pipeline.training.rank_training import make_loader

logger = logging.getLogger(__name__)

_USUAL_THRESHOLD = 0.5  # of a sigmoid


class Result(Config):
    """One system's scores on one set under one protocol."""

    model: str
    kind: str  # ldznet, ldznet (concat), znet, rgbnet, clipseg, masks
    parameters: int | None
    set_name: str
    data_set: str
    split: str
    protocol: Protocol
    manifest_id: str
    scores: Scores
    seconds_per_sample: float  # of predicting: from cached features; CLIPSeg from pixels; masks are only read
    standard_at_val: bool = False  # mean IoU, overall IoU and Pr@ are at the threshold chosen on val
    plain_masks: bool = False  # then every threshold is alike, and AP, of one point, says nothing

    def figures(self) -> dict[str, float]:
        """Every figure that says something under one name, for a tracker."""
        figures = self.scores.flat()
        if self.standard_at_val:  # one name for all systems, whatever their thresholds
            place, threshold = f"_at_{self.scores.standard.threshold:g}", self.scores.standard.threshold
            figures = {
                name.replace(place, "_at_val") if name.startswith("standard_") else name: value
                for name, value in figures.items()
            }
            figures["standard_threshold"] = threshold
        if self.plain_masks:
            figures = {name: value for name, value in figures.items() if not name.startswith("ap")}
        return figures


@dataclass(kw_only=True)
class Evaluation:
    """Everything that an evaluation found."""

    results: list[Result] = field(default_factory=list)
    examples: dict[tuple[str, str], list[Example]] = field(default_factory=dict)  # (model, set) -> examples
    thresholds: dict[str, float] = field(default_factory=dict)  # model -> chosen on val
    counts: dict[tuple[str, str], SegmentationScores] = field(
        default_factory=dict
    )  # (model, set), by `clipseg`
    folders: list[Path] = field(default_factory=list)  # of our networks
    phrases: dict[str, list[ScoredPhrase]] = field(default_factory=dict)  # set -> what was scored

    def add(self, other: "Evaluation") -> None:
        """Take in what another evaluation found on the same sets."""
        self.results += other.results
        self.examples |= other.examples
        self.thresholds |= other.thresholds
        self.counts |= other.counts
        self.folders += other.folders
        self.phrases |= other.phrases

    @property
    def published(self) -> list[PaperRow]:
        """The paper's own figures for the sets that are the paper's."""
        rows: dict[PaperRow, None] = {}
        for one in self.results:
            if one.protocol == "clipseg":
                rows |= dict.fromkeys(
                    paper_rows(one.set_name, one.data_set, one.split, phrases=one.scores.phrases)
                )
        return list(rows)

    def save(self, path: Path) -> None:
        """Write everything as JSON: `results` of ours, and `published` rows of the paper (in percent)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "results": [result.model_dump(mode="json") for result in self.results],
            "published": [row.to_json() for row in self.published],
        }
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def save_phrases(self, folder: Path) -> None:
        """Write `phrases-SET.jsonl`: what another system has to segment, and the file that its mask is to be in."""
        for set_name, phrases in self.phrases.items():
            lines = [
                json.dumps({"mask": f"{set_name}/{file_stem(one.label_id)}.png", **asdict(one)}) + "\n"
                for one in phrases
            ]
            (folder / f"phrases-{set_name}.jsonl").write_text("".join(lines), encoding="utf-8")

    def table(self) -> str:
        """The results as a table for a terminal, with the paper's figures where they compare."""
        return results_table(self.results, self.published)


def evaluate_models(recipe: Recipe, systems: Sequence[SystemConfig]) -> Evaluation:
    """Score systems on the recipe's evaluation sets.

    Raises:
        UserError: nothing to score, something that cannot be, a network trained on another LDM, features missing.
    """
    if not systems:
        raise UserError(
            f"nothing to evaluate: {recipe.output_folder}/models is empty, and evaluate.models names none"
        )
    located = locate_systems(recipe, systems)
    store = open_store(recipe.cache.url)
    evaluation = Evaluation(folders=[one.folder for one in located if one.family == "network"])
    scoring = _Scoring(recipe)
    with reading_lease(store, [manifest.spec for manifest in _manifests(recipe, store).values()]):
        manifests = _manifests(recipe, store)  # once more: what was found before may have been collected
        for name, manifest in manifests.items():
            scoring.check(name, manifest)
        for one in located:
            scoring.score(one, manifests, evaluation)
    return evaluation


def _manifests(recipe: Recipe, store: ObjectStore) -> dict[str, Manifest]:
    return {name: required_manifest(store, recipe, name) for name in recipe.scored_sets}


def locate_systems(recipe: Recipe, systems: Sequence[SystemConfig]) -> list[LocatedSystem]:
    """Find systems, each under a name of its own.

    Raises:
        UserError: one is not there, or nothing that can be scored, or two have one name.
    """
    tracking_uri = store_uri(recipe.tracking, Path(recipe.output_folder))
    located = [locate_system(system, tracking_uri=tracking_uri) for system in systems]
    names = [one.name for one in located]
    if len(set(names)) < len(names):
        twice = max(names, key=names.count)
        raise UserError(
            f"evaluate.models: two are called {twice!r}: give one a name, {{source: FOLDER, name: NAME}}"
        )
    return located


def systems_of(recipe: Recipe) -> tuple[SystemConfig, ...]:
    """What to evaluate: the systems named, else the networks that the recipe's trainings left."""
    if recipe.evaluate.models:
        return recipe.evaluate.models
    folders = sorted(path.parent for path in (Path(recipe.output_folder) / "models").glob("*/config.json"))
    return tuple(SystemConfig(source=str(folder)) for folder in folders)


class _Scoring:
    """Scores one system after another, so that one is in memory at a time."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._store = open_store(recipe.cache.url)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._originals: dict[str, OriginalSamples] = {}

    def check(self, set_name: str, manifest: Manifest) -> None:
        """Refuse early what a protocol cannot do."""
        policy = manifest.spec.policy.view.policy
        if "original" in self._recipe.evaluate.protocols and policy != "squash":
            raise UserError(
                f"the protocol original scores whole photos, but the set {set_name!r} shows crops: "
                "evaluate sets with view.policy squash"
            )

    def score(
        self, located: LocatedSystem, manifests: Mapping[str, Manifest], evaluation: Evaluation
    ) -> None:
        """Score one system on all sets and note its results."""
        digests = {manifest.spec.ldm_digest for manifest in manifests.values()}
        if len(digests) > 1:
            raise UserError(
                "the cached features of the sets to evaluate are of several LDMs: run `ldznet precompute` again"
            )
        system = open_system(
            located,
            ldm_source=self._recipe.ldm.source,
            ldm_digest=digests.pop(),
            device=self._device,
        )
        thresholds = self._thresholds_from_val(system)
        if "clipseg" in thresholds:
            evaluation.thresholds[located.name] = thresholds["clipseg"]
        config = self._recipe.evaluate
        for set_name, manifest in manifests.items():
            scored = self._scored(system, set_name, manifest, examples=config.examples)
            evaluation.examples[located.name, set_name] = scored.examples
            evaluation.phrases[set_name] = scored.phrases
            if "clipseg" in scored.scores:
                evaluation.counts[located.name, set_name] = scored.scores["clipseg"]
            for protocol, counted in scored.scores.items():
                val = thresholds.get(protocol, _USUAL_THRESHOLD if system.binary else None)
                result = Result(
                    model=located.name,
                    kind=system.kind,
                    parameters=system.parameters,
                    set_name=set_name,
                    data_set=manifest.dataset,
                    split=manifest.split,
                    protocol=protocol,
                    manifest_id=manifest.manifest_id,
                    scores=counted.compute(
                        val_threshold=val,
                        standard_threshold=self._standard_threshold(val),
                        resamples=config.bootstrap,
                    ),
                    seconds_per_sample=scored.seconds / len(scored.phrases),
                    standard_at_val=config.standard_threshold == "val" and val is not None,
                    plain_masks=system.binary,
                )
                evaluation.results.append(result)
                told = result.scores.miou.at_val or result.scores.miou.at_fixed
                logger.info(
                    "%s on %s (%s): mIoU %s, AP %s", located.name, set_name, protocol, told, result.scores.ap
                )

    def _thresholds_from_val(self, system: ScoredSystem) -> dict[Protocol, float]:
        """The threshold with the best mIoU on the validation set, under each protocol."""
        val = self._recipe.validate_on
        if val is None or not system.covers(val):
            return {}
        manifest = required_manifest(self._store, self._recipe, val)
        self.check(val, manifest)
        scored = self._scored(system, val, manifest)
        thresholds: dict[Protocol, float] = {}
        for protocol, counted in scored.scores.items():
            best = counted.compute(resamples=0).miou.best.threshold
            assert best is not None, "the best threshold is known"
            thresholds[protocol] = best
        return thresholds

    def _standard_threshold(self, val: float | None) -> float:
        asked = self._recipe.evaluate.standard_threshold
        if asked != "val":
            return asked
        return _USUAL_THRESHOLD if val is None else val

    def _scored(
        self, system: ScoredSystem, set_name: str, manifest: Manifest, *, examples: int = 0
    ) -> ScoredSet:
        recipe = self._recipe
        if set_name not in self._originals:
            self._originals[set_name] = OriginalSamples(data=recipe.data_of(set_name), split=manifest.split)
        originals = self._originals[set_name]
        return score_protocols(
            lambda batch: system.predict(batch, set_name=set_name, originals=originals),
            loader=make_loader(
                recipe, self._store, manifest, batch_size=recipe.evaluate.batch_size, shuffle=False
            ),
            protocols=recipe.evaluate.protocols,
            originals=originals,
            examples=examples,
        )
