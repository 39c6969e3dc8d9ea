"""An evaluation's scores in the cards of the models that it scored."""

from pathlib import Path

from ldznet.score_results import Score
from pipeline.evaluation.run import Evaluation, Result
from pipeline.models.card import add_scores

_HEAD = ("set", "phrases", "threshold", "mIoU", "IoU_FG", "AP")
_NOTE = (
    "In percent, with bootstrap 95 % intervals over images; CLIPSeg's protocol (the paper's tables), photos squashed. "
    "The threshold was chosen on val, where the table does not say otherwise."
)


def tell_cards(evaluation: Evaluation, models: Path) -> None:
    """Write scores into the cards of the models in this folder that were scored under their folders' names."""
    own = [folder for folder in evaluation.folders if folder.resolve().parent == models.resolve()]
    for folder in own:
        rows = [
            _row(result)
            for result in evaluation.results
            if result.protocol == "clipseg" and result.model == folder.name
        ]
        if rows:
            add_scores(folder, [_HEAD, *rows], note=_NOTE)


def _row(result: Result) -> tuple[str, ...]:
    scores = result.scores
    miou, iou_fg = scores.miou.at_val or scores.miou.at_fixed, scores.iou_fg.at_val or scores.iou_fg.at_fixed
    threshold = f"{miou.threshold:g}" + ("" if scores.miou.at_val else " (fixed)")
    named = (f"{result.data_set}, {result.split}", f"{scores.phrases:,}", threshold)
    return (*named, *map(_shown, (miou, iou_fg, scores.ap)))


def _shown(score: Score) -> str:
    if score.low is None or score.high is None:
        return f"{100 * score.value:.1f}"
    return f"{100 * score.value:.1f} ({100 * score.low:.1f} to {100 * score.high:.1f})"
