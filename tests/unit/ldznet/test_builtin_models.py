"""`builtin:NAME` stands for a folder that comes with the package."""

import pytest

from ldznet import builtin_models
from ldznet.errors import UserError
from ldznet.ldm_folder import resolve_ldm


@pytest.fixture
def weights(tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    monkeypatch.setattr(builtin_models, "WEIGHTS", tmp_path)
    return tmp_path


def test_a_name_stands_for_its_folder(weights):
    assert builtin_models.builtin_folder("builtin:tiny") == weights / "tiny"
    assert builtin_models.builtin_folder("runs/ldm") is None


def test_an_unknown_name_is_told_with_those_there_are(weights):
    with pytest.raises(UserError, match=r"builtin:tinny.*builtin:tiny"):
        builtin_models.builtin_folder("builtin:tinny")


def test_names_are_no_paths(weights):
    with pytest.raises(UserError, match="no model"):
        builtin_models.builtin_folder("builtin:../tiny")


def test_an_ldm_is_looked_for_among_them(weights):
    with pytest.raises(UserError, match="tiny: the part 'unet' is missing"):
        resolve_ldm("builtin:tiny")
