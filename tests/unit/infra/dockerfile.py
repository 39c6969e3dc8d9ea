"""A Dockerfile's instructions, continued lines joined, comments and options of RUN left out."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Instruction:
    """Such as `RUN` and what it runs."""

    name: str
    value: str


def instructions(text: str) -> list[Instruction]:
    """All instructions in order."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        name, _, value = line.partition(" ")
        if name == "RUN":
            value = re.sub(r"^(--mount=\S+\s+)+", "", value.strip())
        found.append(Instruction(name, " ".join(value.split())))
    return found
