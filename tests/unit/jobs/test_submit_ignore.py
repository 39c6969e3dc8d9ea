"""Ignore files mean to us what they mean to git: the same files are left, by git itself, which has the last word."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.submit_package import collect_package

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

FILES = ("x", "kept", "a/x", "a/kept", "a/b/x", "a/b/kept", "b/a/x", "x.d/y", ".x", "[x]", "x ")
PATTERNS = st.lists(
    st.sampled_from(
        [
            "*", "*/", "x", "/x", "x/", "x*", "?", "a", "/a", "a/", "/a/", "a/*", "a/**", "**/b", "a/**/x", "**/a/x",
            "**", "b/a", "/*/b", "*.d", "[a-b]", "[!a]", "[^a]", r"\[x\]", r"\x", "# x", "", "x ", r"x\ ", "a/b/x",
            "a//x",
        ]
    ),
    max_size=4,
)  # fmt: skip
LINES = st.lists(st.tuples(st.booleans(), PATTERNS), max_size=3)


def rules(chosen: list[tuple[bool, list[str]]]) -> str:
    return "".join(f"{'!' if back and line else ''}{line}\n" for back, lines in chosen for line in lines)


def by_git(folder: Path) -> set[str]:
    """What git would add, with no repository of its own around it."""
    alone = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    git = ["git", f"--git-dir={folder.parent / 'repository'}", f"--work-tree={folder}"]
    if not (folder.parent / "repository").exists():
        subprocess.run([*git, "init", "--quiet"], check=True, env=os.environ | alone)
    told = subprocess.run(
        [*git, "-C", str(folder), "ls-files", "--others", "-z", "--exclude-per-directory=.gitignore"],
        check=True, capture_output=True, text=True, env=os.environ | alone,
    )  # fmt: skip
    return set(told.stdout.split("\0")) - {""}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ignore") / "project"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


@given(top=LINES, inner=LINES, deep=LINES)
def test_the_same_files_are_left(
    project: Path,
    top: list[tuple[bool, list[str]]],
    inner: list[tuple[bool, list[str]]],
    deep: list[tuple[bool, list[str]]],
) -> None:
    for folder, chosen in (("", top), ("a", inner), ("a/b", deep)):
        (project / folder / ".gitignore").write_text(rules(chosen))
    assert set(collect_package(project, extra={}, secrets={}).files) == by_git(project)


@pytest.mark.parametrize(
    "lines",
    [
        "*\n!*/\n!kept\n",  # only files of that name, at any depth
        "/*\n!/a/\n",
        "a/*\n!a/b\n",
        "x\r\nkept\r\n",
        "\ufeffx\n",
        "!x\nx\n!a/x\n",
    ],
)
def test_idioms(lines: str, project: Path) -> None:
    for folder in ("a", "a/b"):
        (project / folder / ".gitignore").unlink(missing_ok=True)
    (project / ".gitignore").write_bytes(lines.encode())
    assert set(collect_package(project, extra={}, secrets={}).files) == by_git(project)
