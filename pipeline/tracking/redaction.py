"""Keeps secrets out of everything that is logged: by the name of a key, inside URLs, and by value."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REDACTED = "***"

# `token` as a word of its own: `hf_token` and `token-path`, but not `tokenizer` or `max_tokens`.
_SECRET_KEY = re.compile(
    r"secret|passw(?:or)?d|passphrase|credential|(?<![a-z])token(?![a-z])|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|authorization",
    re.IGNORECASE,
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_URL_USER = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s\"'@]*(?:@[^/\s\"'@]*)*@", re.IGNORECASE)
_URL_QUERY = re.compile(
    r"([?&][^=&\s\"']*(?:secret|password|token|signature|credential|key)[^=&\s\"']*=)[^&\s\"']+",
    re.IGNORECASE,
)
_ASSIGNMENT = re.compile(r"^([\s\-{,]*[\"']?)([\w.\-]+)([\"']?\s*[:=]\s*)(\S.*?)(,?\s*)$", re.MULTILINE)
_TEXT_SUFFIXES = frozenset(
    {".yaml", ".yml", ".json", ".jsonl", ".toml", ".ini", ".env", ".txt", ".md", ".log", ".csv", ".html"}
)
_ASSIGNING_SUFFIXES = frozenset({".yaml", ".yml", ".json", ".toml", ".ini", ".env"})
_LONGEST_TEXT = 16 << 20  # bytes
_SHORTEST_SECRET = 8  # a shorter value from the environment is as likely a word of the text


def is_secret_key(key: str) -> bool:
    """Whether a value under this key is to be hidden."""
    return _SECRET_KEY.search(_CAMEL.sub("_", key)) is not None


def redacted(value: Any, key: str = "") -> Any:
    """The value with secrets replaced, however deep. Containers are copied."""
    if isinstance(value, Mapping):
        return {name: redacted(inner, str(name)) for name, inner in value.items()}
    if key and is_secret_key(key) and value not in (None, "", False, True):
        return REDACTED
    if isinstance(value, (list, tuple)):
        return [redacted(inner) for inner in value]
    return redacted_text(value) if isinstance(value, str) else value


def redacted_text(text: str) -> str:
    """Text without credentials in URLs, and without any secret that the environment holds."""
    text = _URL_USER.sub(rf"\1{REDACTED}@", text)
    text = _URL_QUERY.sub(rf"\1{REDACTED}", text)
    for secret in _environment_secrets():
        text = text.replace(secret, REDACTED)
    return text


def redacted_file(path: Path, folder: Path) -> Path:
    """The file itself where it holds no secret, else a copy without them, of the same name, in `folder`.

    Only text is looked into: by its suffix, and up to 16 MB.
    """
    suffix = path.suffix.lower()
    if suffix not in _TEXT_SUFFIXES or path.stat().st_size > _LONGEST_TEXT:
        return path
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    clean = redacted_text(text)
    if suffix in _ASSIGNING_SUFFIXES:
        clean = _ASSIGNMENT.sub(_hide_assigned, clean)
    if clean == text:
        return path
    copy = folder / path.name
    copy.write_text(clean, encoding="utf-8", errors="surrogateescape")
    return copy


def _hide_assigned(match: re.Match[str]) -> str:
    before, key, between, value, end = match.groups()
    if not is_secret_key(key) or value in {"null", "~", '""', "''", "true", "false", "{", "["}:
        return match.group()
    quote = value[0] if value[0] in "\"'" else ""
    return f"{before}{key}{between}{quote}{REDACTED}{quote}{end}"


def _environment_secrets() -> list[str]:
    values = {
        value
        for name, value in os.environ.items()
        if is_secret_key(name) and len(value) >= _SHORTEST_SECRET and not Path(value).is_absolute()
    }
    return sorted(values, key=len, reverse=True)
