"""What tests of `ldznet submit` share: a project's folder with code and a recipe in it."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "code.py").write_text("1")
    return folder


@pytest.fixture
def recipe(small_recipe: Callable[..., Path], project: Path) -> Path:
    return small_recipe().rename(project / "mine.yaml")
