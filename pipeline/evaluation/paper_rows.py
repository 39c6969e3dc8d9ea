"""The paper's figures for a set, where data set and split are the paper's."""

from dataclasses import dataclass
from typing import Any

from ldznet.published_numbers import PublishedScores, published_scores

# Phrases that the paper's sets have: the layout alone does not make a set the paper's.
_PHRASES = {("phrasecut", "test"): 14_354, ("aigi", "test"): 214}
_LEFT_OUT = 0.02  # share that exclusions and faulty files may take


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperRow:
    """One published row beside one set of a recipe."""

    set_name: str
    scores: PublishedScores

    def to_json(self) -> dict[str, Any]:
        """The row as plain data; figures in percent."""
        row = self.scores
        return {
            "set_name": self.set_name,
            "system": row.system,
            "data_set": row.data_set,
            "split": row.split,
            "miou": row.miou,
            "iou_fg": row.iou_fg,
            "ap": row.ap,
            "note": row.note or "best threshold on the test set itself",
        }


def paper_rows(set_name: str, data_set: str, split: str, *, phrases: int) -> tuple[PaperRow, ...]:
    """The published rows to print beside a set; none where it is not the paper's, by name, split and size."""
    if not is_the_papers(data_set, split, phrases=phrases):
        return ()
    return tuple(PaperRow(set_name=set_name, scores=row) for row in published_scores(data_set, split))


def is_the_papers(data_set: str, split: str, *, phrases: int) -> bool:
    """Whether a set with this name, split and size is one that the paper reports on."""
    whole = _PHRASES.get((data_set.lower(), split.lower()))
    return whole is not None and (1 - _LEFT_OUT) * whole <= phrases <= whole
