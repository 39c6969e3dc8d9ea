"""A deal of phrases: everybody gets another photo's, and none that may be true of his own photo."""

import re
from collections import Counter, deque
from collections.abc import Sequence
from typing import Literal

import numpy as np

from pipeline.datasets.sample import Sample

# Wished: no phrase has words in common with those of the photo that are a phrase by themselves, and no photo gets a
# phrase twice. Where a data set has too few phrases for that, what is required: no phrase of the photo lies in the
# phrase that is dealt, nor this in one of them, and no mask gets a phrase twice (it would be one sample, not two).
_Rule = Literal["wished", "required"]

_ARTICLES = frozenset({"a", "an", "the"})
_PLACES_TRIED = 100  # in a row, for one sample
_TESTS_A_SAMPLE = 100  # in all, at most: a second for ten thousand samples
_FEWEST_SAMPLES = 100  # that tests are counted for

_Words = tuple[str, ...]


def deal_phrases(samples: Sequence[Sample], *, chance: np.random.Generator) -> list[int] | None:
    """Whose phrase each sample gets: a random permutation, mended where a phrase may be true of the photo.

    Two phrases of different photos may both be true of one where they tell of the same thing, which is seen by their
    words alone: "the banana at the top" holds all of "the banana". Case, articles and a plural's "s" do not count.

    Returns:
        Places of the samples' new phrases, or None where no sound deal was found.
    """
    deal = _Deal(samples, chance=chance)
    deal.mend("wished")
    deal.mend("required")
    return None if deal.faults("required") else deal.dealt


class _Deal:
    """A permutation that is being mended by swaps."""

    def __init__(self, samples: Sequence[Sample], *, chance: np.random.Generator) -> None:
        self._chance = chance
        self.dealt: list[int] = chance.permutation(len(samples)).tolist()
        self._phrase, self._within = _numbered_phrases([sample.phrase for sample in samples])
        self._photo = _numbered([sample.image for sample in samples])
        self._mask = _numbered([(sample.image, sample.mask) for sample in samples])
        photos = range(len(set(self._photo)))
        self._said: list[set[int]] = [set() for _ in photos]  # of each photo: its phrases,
        self._parts: list[set[int]] = [set() for _ in photos]  # and all phrases that lie in them
        for photo, phrase in zip(self._photo, self._phrase, strict=True):
            self._said[photo].add(phrase)
            self._parts[photo] |= self._within[phrase]

    def faults(self, rule: _Rule) -> list[int]:
        """The samples whose new phrase the rule forbids."""
        return self._faults(rule, self._held(rule))

    def mend(self, rule: _Rule) -> None:
        """Swap phrases until the rule holds, or the tests that are allowed are used up."""
        held, groups = self._held(rule), self._groups(rule)
        waiting = deque(self._faults(rule, held))
        order: list[int] = self._chance.permutation(len(self.dealt)).tolist()
        tests = _TESTS_A_SAMPLE * max(len(order), _FEWEST_SAMPLES)
        while waiting and tests > 0:
            place = waiting.popleft()
            tests -= 1
            if self._holds(rule, place, held):
                continue  # another's swap has mended it
            other, tried, whole = self._partner(rule, place, order, held)
            tests -= tried
            if other is not None:
                self._swap(place, other, groups, held)
            if not whole:
                waiting.append(place if other is None else other)

    def _partner(
        self, rule: _Rule, place: int, order: Sequence[int], held: Counter[tuple[int, int]]
    ) -> tuple[int | None, int, bool]:
        """Whom to swap with, how many were tried, and whether the swap is sound for both.

        Where no place tried is sound for both, one that is sound for this sample: the fault moves on, to where it may
        be mended more easily.
        """
        groups, own = self._groups(rule), self._phrase[self.dealt[place]]
        start, tried = int(self._chance.integers(len(order))), 0
        half: int | None = None
        for tried in range(1, min(len(order), _PLACES_TRIED) + 1):
            other = order[(start + tried) % len(order)]
            theirs = self._phrase[self.dealt[other]]
            if groups[other] == groups[place] or not self._may_have(rule, place, theirs, held):
                continue
            if self._may_have(rule, other, own, held):
                return other, tried, True
            half = other if half is None else half
        return half, tried, False

    def _swap(self, place: int, other: int, groups: Sequence[int], held: Counter[tuple[int, int]]) -> None:
        for one in (place, other):
            held[groups[one], self._phrase[self.dealt[one]]] -= 1
        self.dealt[place], self.dealt[other] = self.dealt[other], self.dealt[place]
        for one in (place, other):
            held[groups[one], self._phrase[self.dealt[one]]] += 1

    def _faults(self, rule: _Rule, held: Counter[tuple[int, int]]) -> list[int]:
        return [place for place in range(len(self.dealt)) if not self._holds(rule, place, held)]

    def _holds(self, rule: _Rule, place: int, held: Counter[tuple[int, int]]) -> bool:
        phrase = self._phrase[self.dealt[place]]
        return held[self._groups(rule)[place], phrase] == 1 and self._is_apart(rule, place, phrase)

    def _may_have(self, rule: _Rule, place: int, phrase: int, held: Counter[tuple[int, int]]) -> bool:
        return not held[self._groups(rule)[place], phrase] and self._is_apart(rule, place, phrase)

    def _is_apart(self, rule: _Rule, place: int, phrase: int) -> bool:
        """Whether a phrase tells of nothing that the photo's own phrases tell of, as far as the rule sees."""
        within, photo = self._within[phrase], self._photo[place]
        if rule == "wished":
            return within.isdisjoint(self._parts[photo])
        return phrase not in self._parts[photo] and within.isdisjoint(self._said[photo])

    def _held(self, rule: _Rule) -> Counter[tuple[int, int]]:
        """How often a photo, or mask, has a phrase."""
        groups = self._groups(rule)
        return Counter((groups[place], self._phrase[other]) for place, other in enumerate(self.dealt))

    def _groups(self, rule: _Rule) -> list[int]:
        return self._photo if rule == "wished" else self._mask


def _numbered(things: Sequence[object]) -> list[int]:
    """Equal things, equal numbers from 0 on."""
    numbers: dict[object, int] = {}
    return [numbers.setdefault(thing, len(numbers)) for thing in things]


def _numbered_phrases(phrases: Sequence[str]) -> tuple[list[int], list[frozenset[int]]]:
    """A number for each phrase, and for each number those of all phrases that lie in it, itself among them."""
    words = [_words(phrase) for phrase in phrases]
    numbers = {one: number for number, one in enumerate(dict.fromkeys(words))}
    lengths = sorted({len(one) for one in numbers})
    return [numbers[one] for one in words], [_phrases_in(one, numbers, lengths) for one in numbers]


def _phrases_in(words: _Words, numbers: dict[_Words, int], lengths: Sequence[int]) -> frozenset[int]:
    runs = (
        words[start : start + length]
        for length in lengths
        if length <= len(words)
        for start in range(len(words) - length + 1)
    )
    return frozenset(numbers[run] for run in runs if run in numbers)


def _words(phrase: str) -> _Words:
    """A phrase as it is compared: folded words without articles and plural's "s"; what has no words, as it stands."""
    words = re.findall(r"\w+", phrase.casefold())
    told = [word for word in words if word not in _ARTICLES] or words
    return tuple(word.removesuffix("s") for word in told) or (phrase,)
