"""A CLIP-style byte-level BPE tokenizer learned from a few thousand phrases, deterministic."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
CONTEXT_TOKENS = 77
_WORD_END = "</w>"
_ENDING = 0xE000  # private-use characters stand for "this byte, at a word's end" while merges are learned


def build_tokenizer(folder: Path, phrases: Iterable[str], *, vocabulary_size: int) -> int:
    """Learn merges from the phrases and save a `CLIPTokenizer`; unseen words fall back to bytes.

    Args:
        folder: where the tokenizer's files go.
        phrases: text to learn from; order and repeats across equal multisets do not matter.
        vocabulary_size: upper limit, special tokens and 512 byte tokens included.

    Returns:
        The number of tokens.
    """
    from transformers import CLIPTokenizer

    alphabet = _byte_alphabet()
    blank = CLIPTokenizer()
    merges = _learn_merges(_count_words(blank, phrases), alphabet, limit=max(vocabulary_size - 514, 0))
    tokens = [
        *alphabet,
        *(letter + _WORD_END for letter in alphabet),
        *(left + right for left, right in merges),
    ]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*tokens, BOS, EOS]))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT_TOKENS)
    tokenizer.save_pretrained(folder)
    return len(vocabulary)


def _byte_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _count_words(tokenizer: Any, phrases: Iterable[str]) -> Counter[str]:
    """Byte-level words as CLIP splits them, with their counts."""
    backend = tokenizer.backend_tokenizer
    words: Counter[str] = Counter()
    for phrase in phrases:
        pieces = backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(phrase))
        words.update(piece for piece, _ in pieces)
    return words


def _learn_merges(words: Counter[str], alphabet: list[str], *, limit: int) -> list[tuple[str, str]]:
    """Most frequent pairs first. A word's last letter is its own symbol, as CLIP's `</w>` makes it."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.trainers import BpeTrainer

    ending = {letter: chr(_ENDING + number) for number, letter in enumerate(alphabet)}
    plain = {mark: letter + _WORD_END for letter, mark in ending.items()}
    learner = Tokenizer(BPE())
    learner.pre_tokenizer = WhitespaceSplit()
    trainer = BpeTrainer(
        vocab_size=2 * len(alphabet) + limit,
        initial_alphabet=[*alphabet, *plain],
        limit_alphabet=2 * len(alphabet),
        min_frequency=2,
        show_progress=False,
    )
    marked = (word[:-1] + ending[word[-1]] for word in sorted(words) for _ in range(words[word]))
    learner.train_from_iterator(marked, trainer=trainer)

    def unmark(symbol: str) -> str:
        return symbol[:-1] + plain[symbol[-1]] if symbol[-1] in plain else symbol

    import json

    return [(unmark(left), unmark(right)) for left, right in json.loads(learner.to_str())["model"]["merges"]]
