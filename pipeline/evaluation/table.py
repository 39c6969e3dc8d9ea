"""Results as a table for a terminal, one part a protocol."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ldznet.score_results import Score
from pipeline.evaluation.paper_rows import PaperRow

if TYPE_CHECKING:
    from pipeline.evaluation.run import Result

_LEVELS = ("0.5", "0.6", "0.7", "0.8", "0.9")


def results_table(results: Sequence["Result"], published: Sequence[PaperRow]) -> str:
    """All results, percent ± half the width of the 95 % interval over images, and the paper's rows."""
    parts = []
    squashed = [result for result in results if result.protocol == "clipseg"]
    if squashed:
        fixed = squashed[0].scores.miou.at_fixed.threshold or 0.0
        head = ["model", "set", "phrases"]
        head += [
            f"{figure} {at}" for figure in ("mIoU", "IoU_FG") for at in ("best", f"@{fixed:g}", "@val")
        ] + ["AP"]
        parts += [
            "CLIPSeg's protocol, photos squashed (as in the paper's tables)",
            _aligned(_rows(head, squashed, published)),
        ]
    title, chosen = "Standard IoU, photos squashed", squashed
    if len(squashed) < len(results):
        title = "Standard IoU at original size, as PhraseCut and the referring sets take it"
        chosen = [result for result in results if result.protocol == "original"]
    parts += [title, _aligned(_standard_rows(chosen))]
    parts.append(
        "In percent, ± half the 95 % interval over images. best: threshold chosen on the scored set itself; @val: on\n"
        "the validation set. overall IoU: pooled (oIoU, PhraseCut's cumulative IoU); Pr@x: share with IoU >= x."
    )
    return "\n".join(parts)


def _rows(head: list[str], results: Sequence["Result"], published: Sequence[PaperRow]) -> list[list[str]]:
    rows = [head]
    for set_name in dict.fromkeys(result.set_name for result in results):
        for result in results:
            if result.set_name == set_name:
                scores = result.scores
                figures = [
                    score
                    for group in (scores.miou, scores.iou_fg)
                    for score in (group.best, group.at_fixed, group.at_val)
                ]
                cells = [_cell(score) for score in [*figures, None if result.plain_masks else scores.ap]]
                rows.append([result.model, set_name, str(scores.phrases), *cells])
        rows += [_paper_cells(row) for row in published if row.set_name == set_name]
    return rows


def _paper_cells(row: PaperRow) -> list[str]:
    """Published figures stand under the threshold that they were taken at."""
    scores = row.scores
    cells = [f"{scores.system}, published", row.set_name, ""]
    for figure in (scores.miou, scores.iou_fg):
        text = "" if figure is None else f"{figure:.1f}"
        cells += ["", text, ""] if scores.note else [text, "", ""]
    return [*cells, "" if scores.ap is None else f"{scores.ap:.1f}"]


def _standard_rows(results: Sequence["Result"]) -> list[list[str]]:
    rows = [
        [
            "model",
            "set",
            "phrases",
            "threshold",
            "mean IoU",
            "overall IoU",
            *(f"Pr@{level}" for level in _LEVELS),
        ]
    ]
    for result in sorted(results, key=lambda one: [one.set_name for one in results].index(one.set_name)):
        standard = result.scores.standard
        figures = [
            standard.mean_iou,
            standard.overall_iou,
            *(standard.precision_at[level] for level in _LEVELS),
        ]
        threshold = f"{standard.threshold:g}{' (val)' if result.standard_at_val else ''}"
        named = [result.model, result.set_name, str(result.scores.phrases), threshold]
        rows.append([*named, *map(_cell, figures)])
    return rows


def _cell(score: Score | None) -> str:
    if score is None:
        return "-"
    text = f"{100 * score.value:.1f}"
    if score.low is not None and score.high is not None:
        text += f" ±{50 * (score.high - score.low):.1f}"
    return text


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
