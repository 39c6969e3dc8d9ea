"""An evaluation as a whole: every model on every set, thresholds chosen on the validation set, one table."""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ldznet.config import Config
from ldznet.errors import UserError
from ldznet.modeling import SegmentationNetwork, network_from_pretrained
from ldznet.prediction_config import PredictionConfig
from ldznet.score_results import Scores
from pipeline.cache.manifest import Manifest
from pipeline.evaluation import Example, network_predictor, score_set
from pipeline.object_store.opening import open_store
from pipeline.recipe import Recipe
from pipeline.train_rank import make_loader, required_manifest

logger = logging.getLogger(__name__)


class Result(Config):
    """One model's scores on one set."""

    model: str  # name of the model's folder
    kind: str
    parameters: int
    set_name: str
    data_set: str
    split: str
    manifest_id: str
    scores: Scores
    seconds_per_sample: float  # network alone, from cached features, on this machine


@dataclass(kw_only=True)
class Evaluation:
    """Everything that an evaluation found."""

    results: list[Result] = field(default_factory=list)
    examples: dict[tuple[str, str], list[Example]] = field(default_factory=dict)  # (model, set) -> examples
    thresholds: dict[str, float] = field(default_factory=dict)  # model -> chosen on val

    def save(self, path: Path) -> None:
        """Write the results as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [result.model_dump(mode="json") for result in self.results]
        path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")

    def table(self) -> str:
        """The results as a table for a terminal. Scores in percent, with 95 % intervals over images."""
        head = ("model", "set", "phrases", "mIoU @val", "IoU_FG @val", "AP", "mIoU best")
        rows: list[tuple[str, ...]] = [head]
        for result in self.results:
            scores = result.scores
            shown = (scores.miou.at_val, scores.iou_fg.at_val, scores.ap, scores.miou.best)
            figures = ("-" if score is None else str(score) for score in shown)
            rows.append((result.model, result.set_name, str(scores.phrases), *figures))
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
        )


def evaluate_models(recipe: Recipe, folders: Sequence[Path]) -> Evaluation:
    """Score models on the recipe's evaluation sets.

    Raises:
        UserError: no model, a folder that is not ours, a model trained on another LDM, or features missing.
    """
    if not folders:
        raise UserError(
            f"nothing to evaluate: {recipe.output_folder}/models is empty, and evaluate.models names none"
        )
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise UserError(
            f"evaluate.models: two folders are called {max(names, key=names.count)!r}: rename one"
        )
    store = open_store(recipe.cache.url)
    sets = recipe.evaluate.sets or tuple(name for name in recipe.sets if name != recipe.train_on)
    manifests = {name: required_manifest(store, recipe, name) for name in sets}
    evaluation = Evaluation()
    for folder in folders:
        network = network_from_pretrained(folder)
        _check_ldm(folder, next(iter(manifests.values())))
        val_threshold = _threshold_from_val(recipe, network)
        if val_threshold is not None:
            evaluation.thresholds[folder.name] = val_threshold
        for name, manifest in manifests.items():
            result, examples = _score(recipe, network, folder, name, manifest, val_threshold=val_threshold)
            evaluation.results.append(result)
            evaluation.examples[folder.name, name] = examples
            logger.info(
                "%s on %s: mIoU %s, AP %s", folder.name, name, result.scores.miou.at_val, result.scores.ap
            )
    return evaluation


def model_folders(recipe: Recipe) -> list[Path]:
    """The model folders to evaluate: those named, else those that the recipe's trainings left."""
    if recipe.evaluate.models:
        return [Path(folder) for folder in recipe.evaluate.models]
    return sorted(path.parent for path in (Path(recipe.output_folder) / "models").glob("*/config.json"))


def _check_ldm(folder: Path, manifest: Manifest) -> None:
    if PredictionConfig.load(folder).ldm_digest != manifest.spec.ldm_digest:
        raise UserError(
            f"{folder} was trained on features of another LDM than this recipe's: name the right ldm.source"
        )


def _threshold_from_val(recipe: Recipe, network: SegmentationNetwork) -> float | None:
    if recipe.validate_on is None:
        return None
    store = open_store(recipe.cache.url)
    manifest = required_manifest(store, recipe, recipe.validate_on)
    loader = make_loader(recipe, store, manifest, batch_size=recipe.evaluate.batch_size, shuffle=False)
    scores, _ = score_set(network_predictor(network, device=_device()), loader=loader)
    return scores.compute(resamples=0).miou.best.threshold


def _score(
    recipe: Recipe,
    network: SegmentationNetwork,
    folder: Path,
    set_name: str,
    manifest: Manifest,
    *,
    val_threshold: float | None,
) -> tuple[Result, list[Example]]:
    store = open_store(recipe.cache.url)
    loader = make_loader(recipe, store, manifest, batch_size=recipe.evaluate.batch_size, shuffle=False)
    predict = network_predictor(network, device=_device())
    started = time.perf_counter()
    scores, examples = score_set(predict, loader=loader, examples=recipe.evaluate.examples)
    seconds = time.perf_counter() - started
    result = Result(
        model=folder.name,
        kind=network.kind,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        set_name=set_name,
        data_set=manifest.dataset,
        split=manifest.split,
        manifest_id=manifest.manifest_id,
        scores=scores.compute(val_threshold=val_threshold, resamples=recipe.evaluate.bootstrap),
        seconds_per_sample=seconds / manifest.samples,
    )
    return result, examples


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
