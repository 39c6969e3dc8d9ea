"""A data set whose phrases were dealt out anew: what a system that understands phrases must fail on."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ldznet.errors import UserError
from pipeline.datasets.phrase_deal import deal_phrases
from pipeline.datasets.rephrased import Rephrased
from pipeline.datasets.sample import Sample
from pipeline.draws import draw_generator


@dataclass(frozen=True, kw_only=True, slots=True)
class ShuffledPhrases(Rephrased):
    """Every sample with the phrase of another photo's sample; images and masks stay. Lists a split in memory.

    The phrase is drawn from (seed, split), and none that may be true of the photo by its words: see `deal_phrases`.
    """

    done = "shuffled"

    seed: int = 0

    def samples(self, split: str) -> Iterator[Sample]:
        """The split's samples in their order.

        Raises:
            UserError: there are too few photos, or phrases that differ, to give each sample another photo's.
        """
        samples = list(self.whole.samples(split))
        dealt = deal_phrases(samples, chance=draw_generator("shuffled phrases", self.seed, split))
        if dealt is None:
            raise UserError(_refusal(samples, split=split))
        for sample, other in zip(samples, dealt, strict=True):
            yield replace(sample, phrase=samples[other].phrase)


def _refusal(samples: list[Sample], *, split: str) -> str:
    photos, phrases = len({one.image for one in samples}), len({one.phrase for one in samples})
    return (
        f"phrases of split {split!r} cannot be shuffled: its {len(samples)} samples, of {photos} photos and {phrases} "
        "phrases, are too much alike for each to get another photo's phrase that its own photo's do not say already; "
        "take a split with more photos, or phrases: hidden"
    )
