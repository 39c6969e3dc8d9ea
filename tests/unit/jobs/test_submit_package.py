"""What a submitted job is given to run in: no data, caches, runs or secrets, and never too much."""

import zipfile
from pathlib import Path

import pytest

from jobs import submit_package
from jobs.submit_package import collect_package
from ldznet.builtin_models import WEIGHTS
from ldznet.errors import UserError

CHECKOUT = Path(__file__).parents[3]


def write(folder: Path, *names: str, content: str = "x") -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def names(folder: Path, **secrets: str) -> set[str]:
    return set(collect_package(folder, extra={}, secrets=secrets).files)


def test_only_the_projects_own_files_go(tmp_path: Path) -> None:
    write(tmp_path, "jobs/train.py", "recipes/mine.yaml", "inner/data/kept.py")
    write(
        tmp_path, ".git/config", ".venv/bin/python", "runs/a/model.safetensors", "data/photo.jpg", "mlruns/1"
    )
    write(tmp_path, "a/__pycache__/b.pyc", ".mypy_cache/x", "x.egg-info/y", "mlflow.db")
    write(
        tmp_path,
        ".env",
        "prod.env",
        "infra/credentials.env",
        "key.pem",
        ".aws/credentials",
        ".ray/auth_token",
    )
    assert names(tmp_path) == {"jobs/train.py", "recipes/mine.yaml", "inner/data/kept.py"}


def test_ignore_files_are_read_as_git_reads_them(tmp_path: Path) -> None:
    write(tmp_path, ".gitignore", content="*.ckpt\n/top.txt\nlogs/\n!kept.ckpt\n")
    write(tmp_path, "inner/.gitignore", content="local.txt\n")
    write(tmp_path, ".rayignore", content="/large\n")
    write(tmp_path, "a.ckpt", "kept.ckpt", "top.txt", "inner/top.txt", "logs/x", "inner/logs/y")
    write(tmp_path, "inner/local.txt", "local.txt", "large/table.csv")
    there = {".gitignore", "inner/.gitignore", ".rayignore"}
    assert names(tmp_path) - there == {"kept.ckpt", "inner/top.txt", "local.txt"}


@pytest.mark.parametrize("place", [".gitignore", ".rayignore", "certificates/.gitignore"])
def test_what_is_never_sent_no_ignore_file_takes_back(place: str, tmp_path: Path) -> None:
    write(tmp_path, place, content="!*.pem\n!.env\n!**\n!/data/\n!/data/*\n")
    write(
        tmp_path,
        "certificates/server.pem",
        "certificates/.env",
        "certificates/readme.md",
        "server.pem",
        ".env",
    )
    write(tmp_path, "data/photo.jpg", ".ssh/id_rsa")
    assert names(tmp_path) == {place, "certificates/readme.md"}


def test_a_deeper_file_takes_back_what_a_higher_one_names(tmp_path: Path) -> None:
    write(tmp_path, ".gitignore", content="*.log\nbuild/\n")
    write(tmp_path, "inner/.gitignore", content="!kept.log\n!build/\n")
    write(tmp_path, "a.log", "kept.log", "inner/a.log", "inner/kept.log", "inner/build/x", "build/x")
    there = {".gitignore", "inner/.gitignore"}
    assert names(tmp_path) - there == {"inner/kept.log", "inner/build/x"}


def test_rayignore_is_not_taken_back_by_gitignore(tmp_path: Path) -> None:
    write(tmp_path, ".rayignore", content="*.csv\n")
    write(tmp_path, "tables/.gitignore", content="!large.csv\n")
    write(tmp_path, "tables/large.csv", "code.py")
    assert names(tmp_path) == {".rayignore", "tables/.gitignore", "code.py"}


def test_no_link_leads_out(tmp_path: Path) -> None:
    write(tmp_path, "outside/secret", "project/a.py")
    (tmp_path / "project/link").symlink_to(tmp_path / "outside/secret")
    (tmp_path / "project/folder").symlink_to(tmp_path / "outside")
    (tmp_path / "project/b.py").symlink_to("a.py")
    assert names(tmp_path / "project") == {"a.py", "b.py"}


def test_no_link_leads_to_what_is_never_sent(tmp_path: Path) -> None:
    write(tmp_path, "project/.env", "project/.aws/credentials", "project/inner/a.py", "project/.gitignore")
    for name, target in {
        "one": ".env",
        "two": ".aws/credentials",
        "three": "inner/a.py",
        "inner/b": "../.env",
    }.items():
        (tmp_path / "project" / name).symlink_to(target)
    (tmp_path / "alias").symlink_to("project")
    assert names(tmp_path / "alias") == {".gitignore", "inner/a.py", "three"}


def test_too_much_names_the_largest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit_package, "LARGEST_MIB", 1)
    write(tmp_path, "photos/1", "photos/2", content="x" * 700_000)
    write(tmp_path, "table.csv", content="x" * 300_000)
    write(tmp_path, "a.py")
    with pytest.raises(UserError) as refused:
        names(tmp_path)
    told = str(refused.value)
    assert "holds 2 MiB in 4 files, more than 1 MiB: photos/ 1.3 MiB, table.csv 0.3 MiB, a.py 0.0 MiB" in told
    assert ".rayignore" in told


def test_a_file_with_a_secret_is_named_and_the_secret_is_not(tmp_path: Path) -> None:
    write(tmp_path, "notes/how.md", content="log in with correct-horse-battery\n")
    with pytest.raises(UserError, match=r"notes/how\.md holds the value of MY_PASSWORD") as refused:
        names(tmp_path, MY_PASSWORD="correct-horse-battery")
    assert "horse" not in str(refused.value)


def test_the_largest_files_are_told(tmp_path: Path) -> None:
    write(tmp_path, "photos/1", "photos/2", content="x" * 700_000)
    write(tmp_path, "table.csv", content="x" * 300_000)
    told = collect_package(tmp_path, extra={}, secrets={}).largest_files()
    assert told == "photos/1 0.7 MiB, photos/2 0.7 MiB, table.csv 0.3 MiB"


def test_equal_files_make_equal_archives(tmp_path: Path) -> None:
    write(tmp_path, "one/b.py", "one/a.py")
    write(tmp_path, "two/a.py", "two/b.py")
    archives = []
    for name in ("one", "two"):
        archive = tmp_path / f"{name}.zip"
        collect_package(tmp_path / name, extra={}, secrets={}).write(archive)
        archives.append(archive.read_bytes())
    assert archives[0] == archives[1]
    with zipfile.ZipFile(tmp_path / "one.zip") as packed:
        assert packed.namelist() == ["a.py", "b.py"]


def test_this_checkout_is_small_and_runs_from_what_goes() -> None:
    package = collect_package(CHECKOUT, extra={}, secrets={})
    assert {"jobs/train.py", "pipeline/recipe.py", "ldznet/blocks.py", "jobs/recipes/scenes.yaml"} <= set(
        package.files
    )
    assert {name.partition("/")[0] for name in package.files}.isdisjoint(
        {".git", ".venv", "runs", ".mypy_cache"}
    )
    weights = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
    assert 0 < package.size - weights < 16e6  # models that come with ldznet go along: recipes may name them
