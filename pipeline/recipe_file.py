"""Reading a recipe: YAML and `a.b=c` overrides into typed, frozen objects, or one clear line why not."""

import difflib
import json
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from yaml import YAMLError

from ldznet.errors import UserError
from pipeline.recipe import Recipe

T = TypeVar("T", bound=BaseModel)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply overrides such as `train.steps=100`, and check all of it before any work.

    Raises:
        UserError: the file is missing or no YAML, or a key or value is wrong; the nearest valid key is named.
    """
    return parse_recipe(read_recipe(path, overrides), source=str(path))


def override_of(key: str, value: str) -> str:
    """An override whose value is this very text: in quotes where YAML or a grid would make something else of it."""
    try:
        plain = "," not in value and OmegaConf.from_dotlist([f"value={value}"]) == {"value": value}
    except (OmegaConfBaseException, YAMLError):
        plain = False
    return f"{key}={value if plain else json.dumps(value, ensure_ascii=False)}"


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> dict[Any, Any]:
    """A recipe file's content with overrides, unchecked.

    Raises:
        UserError: the file is missing or no YAML, or an override is none.
    """
    if not path.is_file():
        raise UserError(f"there is no recipe {path}: the project's own lie in jobs/recipes/")
    for override in overrides:
        if "=" not in override.lstrip("="):
            raise UserError(f"{override!r} is no override: write it as key=value, such as train.steps=100")
    try:
        written = OmegaConf.load(path)
        if not isinstance(written, DictConfig):
            raise UserError(f"{path} holds a list, where a recipe is a mapping of keys")
        merged = OmegaConf.merge(written, OmegaConf.from_dotlist(list(overrides)))
        # Not resolved: an interpolation such as ${oc.env:…} could bring a secret into what every run stores.
        content = OmegaConf.to_container(merged, resolve=False)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a recipe: {' '.join(str(error).split())}") from error
    assert isinstance(content, dict), "a mapping stays a mapping"
    return content


def parse_recipe(content: dict[Any, Any], *, source: str) -> Recipe:
    """A recipe from plain containers; `source` names it in errors."""
    return parse_config(Recipe, content, source=source)


def parse_config(model: type[T], content: dict[Any, Any], *, source: str) -> T:
    """A configuration of any kind from plain containers; `source` names it in errors.

    Raises:
        UserError: a key or value is wrong; the nearest valid key is named.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        errors = error.errors()
        # A misspelt key says more than the missing one it was meant to be.
        worst = min(errors, key=lambda one: one["type"] != "extra_forbidden")
        raise UserError(f"{source}: {describe_error(worst, model=model)}") from error


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML: every default spelt out."""
    return OmegaConf.to_yaml(OmegaConf.create(recipe.model_dump(mode="json")))


def describe_error(error: ErrorDetails, *, model: type[BaseModel] = Recipe) -> str:
    """One line for one validation error: where, what, and the nearest valid key where there is one."""
    location = [part for part in error["loc"] if not _is_branch_name(part)]
    where = ".".join(str(part) for part in location)
    match error["type"]:
        case "extra_forbidden":
            known = sorted(_keys_at(model, location[:-1]))
            nearest = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
            mend = f"did you mean {nearest[0]!r}?" if nearest else f"known keys are {', '.join(known)}"
            return f"unknown key {where!r}: {mend}"
        case "missing":
            return f"the key {where!r} is missing"
        case "value_error":
            reason = str(error["ctx"]["error"]) if "ctx" in error else error["msg"]
            return f"{where}: {reason}" if where else reason
        case _:
            shown = repr(error["input"])
            shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
            return f"{where}: {error['msg'].lower()}, not {shown}"


def _is_branch_name(part: int | str) -> bool:
    return isinstance(part, str) and ("[" in part or part == "int" or part.endswith("Config"))


def _keys_at(model: Any, location: Sequence[int | str]) -> set[str]:
    for part in location:
        model = _step(model, part)
    return set(model.model_fields) if _is_model(model) else set()


def _step(annotation: Any, part: int | str) -> Any:
    if _is_model(annotation):
        field = annotation.model_fields.get(str(part))
        return _model_within(field.annotation, keep_mapping=True) if field else None
    return _model_within(annotation)


def _model_within(annotation: Any, *, keep_mapping: bool = False) -> Any:
    """The configuration class inside `X | None`, `dict[str, X]` or `tuple[X, ...]`."""
    if _is_model(annotation) or annotation is None:
        return annotation
    origin = get_origin(annotation)
    if origin in {Union, types.UnionType}:
        return next((found for found in map(_model_within, get_args(annotation)) if _is_model(found)), None)
    if keep_mapping and origin in {dict, tuple, list}:
        return annotation
    return next((argument for argument in get_args(annotation) if _is_model(argument)), None)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
