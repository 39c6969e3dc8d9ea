"""Random draws that depend on nothing but their name."""

import hashlib

import numpy as np


def draw_generator(*parts: str | int) -> np.random.Generator:
    """A generator of random numbers that is a pure function of its parts.

    `draw_generator("view", seed, image_id, draw)` gives the same numbers in every process and on every
    machine, whatever was drawn before, and unrelated ones for any other parts. The parts are hashed with
    their type and length (SHA-256), so `("a", "bc")` differs from `("ab", "c")` and `1` from `"1"`; the hash
    keys Philox, a counter-based generator. NumPy keeps the raw stream for good, but may change how a
    distribution is made from it between releases: what is cached with its results names a NumPy release.
    """
    digest = hashlib.sha256()
    for part in parts:
        body = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else str(int(part)).encode()
        digest.update(f"{'text' if isinstance(part, str) else 'number'}:{len(body)}:".encode() + body)
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest.digest()[:16], "little")))
