"""The report of one experiment: gathered from its evaluation, its caches and its runs in MLflow."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ldznet.errors import UserError
from ldznet.ldm_folder import ldm_digest, resolve_ldm
from ldznet.published_numbers import published_scores
from pipeline.cache.manifest import Manifest, find_manifest, read_left_out
from pipeline.evaluation.example_pictures import example_photo
from pipeline.evaluation.paper_rows import is_the_papers
from pipeline.evaluation.run import Evaluation, Result
from pipeline.models.origins import is_untrained
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore
from pipeline.pictures import Curve
from pipeline.recipe import Recipe
from pipeline.report.content import (
    Command,
    CurveChart,
    Example,
    LdmFacts,
    NetworkScores,
    ReportContent,
    Stage,
)
from pipeline.report.machine import machine_facts, package_versions
from pipeline.report.page import write_report
from pipeline.tracking.tracker import Tracker
from pipeline.training.run import model_run_id

logger = logging.getLogger(__name__)

CLIPART_CREDIT = (
    "Pictures of generated scenes show clip-art of Noto Emoji (Apache-2.0), Twemoji (CC BY 4.0) and Fluent Emoji (MIT) "
    "on photos of scikit-image and scikit-learn; see NOTICE."
)
EXAMPLES = 12


def write_experiment_report(
    recipe: Recipe,
    evaluation: Evaluation,
    path: Path,
    *,
    tracker: Tracker,
    stages: Sequence[Stage] = (),
    commands: Sequence[Command] = (),
) -> Path:
    """Write `report.html` for an evaluation. Returns its path."""
    found = _cached_sets(recipe)
    cached = {name: one for name, one in found.items() if one is not None}
    folder = resolve_ldm(recipe.ldm.source)
    untrained = is_untrained(folder)
    content = ReportContent(
        title=recipe.name,
        summary=_summary(recipe, evaluation, untrained=untrained),
        created=datetime.now(UTC),
        ldm=LdmFacts(source=recipe.ldm.source, digest=ldm_digest(folder), untrained=untrained),
        machine=machine_facts(),
        versions=package_versions(),
        caches={name: one.manifest.cache_key for name, one in cached.items()},
        samples={name: one.manifest.samples for name, one in cached.items()},
        stages=tuple(stages),
        scores=tuple(
            NetworkScores(
                network=result.model,
                data_set=result.data_set,
                split=_split_title(result),
                scores=result.scores,
            )
            for result in evaluation.results
        ),
        charts=_charts(recipe, evaluation, tracker),
        examples=_examples(evaluation),
        quarantine=sum((one.left_out for one in cached.values()), Counter[str]()),
        commands=(Command(purpose="See every run in MLflow", line=tracker.open_command), *commands),
        notes=_notes(recipe, evaluation, missing=[name for name in found if name not in cached]),
    )
    write_report(path, content)
    return path


def _split_title(result: Result) -> str:
    """The split's name alone where the paper's figures belong beside it; else what tells the set from others."""
    title = result.split if result.split == result.set_name else f"{result.set_name} ({result.split})"
    if result.protocol == "original":
        return f"{title}, original size"
    if is_the_papers(result.data_set, result.split, phrases=result.scores.phrases):
        return result.split
    if published_scores(result.data_set, title):
        return f"{title} ({result.scores.phrases} phrases, not the paper's)"
    return title


def _summary(recipe: Recipe, evaluation: Evaluation, *, untrained: bool) -> str:
    models = list(dict.fromkeys(result.model for result in evaluation.results))
    sets = list(dict.fromkeys(result.set_name for result in evaluation.results))
    told = (
        f"{_listed(models)} on {_listed(sets)} of {recipe.data.root}, from cached features of the frozen LDM."
    )
    if untrained:
        told += " The frozen LDM is an untrained miniature: its features know nothing of the world, so scores are low."
    return told


def _notes(recipe: Recipe, evaluation: Evaluation, *, missing: Sequence[str]) -> tuple[str, ...]:
    notes = [CLIPART_CREDIT] if recipe.scenes is not None else []
    plain = list(dict.fromkeys(result.model for result in evaluation.results if result.plain_masks))
    if plain:
        notes.append(
            f"{_listed(plain)}: plain masks, so every threshold gives the same figures, and AP, of a curve with one "
            "point, says nothing."
        )
    if missing:
        notes.append(
            f"The cache holds no features of {_listed(missing)} that can be read, so their samples are not "
            "counted here."
        )
    return tuple(notes)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else "".join(names)


@dataclass(frozen=True, kw_only=True, slots=True)
class _CachedSet:
    """What the cache tells of a set."""

    manifest: Manifest
    left_out: Counter[str]  # reason -> samples


def _cached_sets(recipe: Recipe) -> dict[str, _CachedSet | None]:
    """Every set of the recipe; None for those of which the cache tells nothing.

    Such a set was not scored, or was freed since: after hours of scoring that is no reason to fail.
    """
    store = open_store(recipe.cache.url)
    return {name: _cached_set(store, recipe, name) for name in recipe.sets}


def _cached_set(store: ObjectStore, recipe: Recipe, name: str) -> _CachedSet | None:
    try:
        manifest = find_manifest(store, recipe.request_digest(name))
        if manifest is None:
            return None
        left_out = _left_out(store, manifest)
    except (UserError, OSError) as error:  # damaged, of another version, or the store is away
        logger.warning("the report goes without the set %r: %s", name, error)
        return None
    return _CachedSet(manifest=manifest, left_out=left_out)


def _left_out(store: ObjectStore, manifest: Manifest) -> Counter[str]:
    if not manifest.failed + manifest.filtered:
        return Counter()
    return Counter(f"{member.why}: {member.reason}" for _, member in read_left_out(store, manifest))


def _charts(recipe: Recipe, evaluation: Evaluation, tracker: Tracker) -> tuple[CurveChart, ...]:
    models = list(dict.fromkeys(result.model for result in evaluation.results))
    runs = {model: model_run_id(Path(recipe.output_folder) / "models" / model) for model in models}
    charts = []
    for title, label, metric in (
        ("Training loss", "binary cross-entropy", "train/loss"),
        ("Validation mIoU", "mIoU at its best threshold", "val/miou"),
    ):
        curves = []
        for model, run_id in runs.items():
            points = _history(tracker, run_id, metric) if run_id else []
            if points:
                steps, values = zip(*points, strict=True)
                curves.append(Curve(name=model, steps=steps, values=values))
        if curves:
            charts.append(CurveChart(title=title, y_label=label, curves=tuple(curves)))
    return tuple(charts)


def _history(tracker: Tracker, run_id: str, metric: str) -> list[tuple[int, float]]:
    points = tracker.use(f"reading {metric}", lambda client, _: client.get_metric_history(run_id, metric))
    return [(point.step, point.value) for point in points or ()]


def _examples(evaluation: Evaluation) -> tuple[Example, ...]:
    """A dozen phrases, sets in turn, each with every model's mask at the threshold chosen on val."""
    models = list(dict.fromkeys(model for model, _ in evaluation.examples))
    sets = list(dict.fromkeys(set_name for _, set_name in evaluation.examples))
    shown: list[Example] = []
    each = -(-EXAMPLES // max(1, len(sets)))
    for set_name in sets:
        for number, first in enumerate(evaluation.examples[models[0], set_name][:each]):
            predictions = {
                model: evaluation.examples[model, set_name][number].probability
                > evaluation.thresholds.get(model, 0.5)
                for model in models
            }
            shown.append(
                Example(
                    phrase=first.phrase,
                    image=example_photo(first),
                    truth=first.truth,
                    predictions=predictions,
                    group=set_name,
                )
            )
    return tuple(shown[:EXAMPLES])
