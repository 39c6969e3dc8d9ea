"""docs/recipes.md names every key of a recipe with its default, and no key that there is not."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.recipe import Recipe

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "recipes.md"
HEADING = re.compile(r"^#+ .*`([\w.]+)`", re.MULTILINE)
ROW = re.compile(r"^\| `([\w.]+)` \| [^|]+ \| ([^|]+) \| [^|]+ \|$", re.MULTILINE)


def model_within(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for found in map(model_within, get_args(annotation)) if found), None)


def keys_of(model: type[BaseModel], prefix: str, described: set[type]) -> Iterator[tuple[str, FieldInfo]]:
    """Every key with its field, sections before their keys. NAME stands for a name that the user gives.

    A section of a kind that came before (a set's own `data`) is given without its keys.
    """
    for name, field in model.model_fields.items():
        inner = model_within(field.annotation)
        of_mappings = get_origin(field.annotation) is dict and inner is not None
        key = f"{prefix}{name}.NAME" if of_mappings else f"{prefix}{name}"
        yield key, field
        if inner is not None and inner not in described:
            described.add(inner)
            yield from keys_of(inner, f"{key}.", described)


def shown_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def is_section(field: FieldInfo) -> bool:
    """Whether a field holds keys of its own, which the document lists under a heading."""
    return model_within(field.annotation) is not None


FIELDS = dict(keys_of(Recipe, "", set()))
LEAVES = {key: field for key, field in FIELDS.items() if not is_section(field)}


@pytest.fixture(scope="module")
def text() -> str:
    return DOCUMENT.read_text(encoding="utf-8")


def test_every_key_has_a_row_with_its_default(text: str) -> None:
    written = dict(ROW.findall(text))
    missing = sorted(set(LEAVES) - set(written))
    assert not missing, f"docs/recipes.md lacks {', '.join(missing)}"
    wrong = [
        f"{key}: {written[key]}, in the code {shown_default(field)}"
        for key, field in LEAVES.items()
        if written[key] != shown_default(field)
    ]
    assert not wrong, f"docs/recipes.md gives other defaults than the code: {'; '.join(wrong)}"


def test_every_section_has_a_heading(text: str) -> None:
    sections = {key for key, field in FIELDS.items() if is_section(field)}
    missing = sorted(sections - set(HEADING.findall(text)))
    assert not missing, f"docs/recipes.md has no heading for {', '.join(missing)}"


def test_no_key_is_named_that_there_is_not(text: str) -> None:
    named = {key for key, _ in ROW.findall(text)} | set(HEADING.findall(text))
    unknown = sorted(named - set(FIELDS))
    assert not unknown, f"docs/recipes.md names {', '.join(unknown)}, which no recipe has"


def test_the_keys_are_read_from_the_models() -> None:
    # What the tests above compare with: sections in sections, under given names, in lists, optional ones.
    for key in (
        "name",
        "sets.NAME.view.size",
        "scenes.counts.foreign",
        "data.refer.split_by",
        "evaluate.models.source",
    ):
        assert key in LEAVES
    assert "sets.NAME.data" in FIELDS
