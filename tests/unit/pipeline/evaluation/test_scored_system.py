"""Systems to score: found, and named so that their figures can be told to MLflow."""

from pathlib import Path

import pytest

from pipeline.evaluation.scored_system import locate_system
from pipeline.recipe import SystemConfig


@pytest.mark.parametrize(("folder", "name"), [("sam 3.1_b-l", "sam 3.1_b-l"), ("pc+ (new)", "pc- -new-")])
def test_a_folder_names_its_system_without_what_mlflow_refuses(
    tmp_path: Path, folder: str, name: str
) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "mask.png").touch()
    located = locate_system(SystemConfig(source=str(tmp_path / folder)), tracking_uri=None)
    assert (located.name, located.family) == (name, "masks")
