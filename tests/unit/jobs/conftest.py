"""What tests of commands share: for `ldznet submit` a project's folder with code and a recipe in it; a photo."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "code.py").write_text("1")
    return folder


@pytest.fixture
def recipe(small_recipe: Callable[..., Path], project: Path) -> Path:
    return small_recipe().rename(project / "mine.yaml")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photo of noise, as people would give one."""
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path
