"""`ldznet noise-map`: a picture of each phrase, which LDM it was asked of, and mistakes in one line."""

from pathlib import Path

import pytest

from jobs.cli import main
from ldznet.builtin_models import DEFAULT_LDM

QUICK = ("--timesteps", "400", "--seeds", "0", "--size", "64")


def test_each_phrase_gets_a_picture(
    photo: Path, miniature_ldm: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "maps"
    arguments = [str(photo), "the dog", "The dog!", "--out", str(out)]
    assert main(["noise-map", *arguments, "--ldm", str(miniature_ldm), *QUICK]) == 0
    assert {path.name for path in out.iterdir()} == {"photo-the-dog-noise.png", "photo-the-dog-2-noise.png"}
    assert "no --ldm" not in caplog.text


def test_it_tells_which_ldm_it_took_where_none_was_named(
    photo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["noise-map", str(photo), "the dog", "--out", str(tmp_path), *QUICK]) == 0
    assert f"no --ldm: {DEFAULT_LDM}, a small one that knows drawn scenes, not photos" in caplog.text


@pytest.mark.parametrize("phrases", [["  "], ["the dog", ""]])
def test_an_empty_phrase_is_refused_in_one_line(
    phrases: list[str], photo: Path, miniature_ldm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "maps"
    arguments = [str(photo), *phrases, "--ldm", str(miniature_ldm), "--out", str(out), *QUICK]
    assert main(["noise-map", *arguments]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("ldznet: an empty phrase names nothing")
    assert not out.exists()
