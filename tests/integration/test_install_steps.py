"""The image's install steps, taken from the Dockerfile, in a clean virtual environment: no container engine needed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
sys.path.insert(0, str(CHECKOUT / "tests" / "unit" / "infra"))
from dockerfile import Instruction, instructions  # noqa: E402 - of the tests beside the Dockerfile's

DOCKERFILE = CHECKOUT / "infra" / "docker" / "Dockerfile"
PATIENCE_S = 420
OFFLINE = re.compile(
    r"dns error|Connection refused|Network is unreachable|Failed to fetch|NewConnectionError|timed out"
)

pytestmark = pytest.mark.slow


def run(line: str, *, cwd: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    if done.returncode and OFFLINE.search(done.stderr):
        pytest.skip(f"no package registry: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def copy_as_the_image_does(steps: list[Instruction], folder: Path) -> None:
    for step in steps:
        if step.name == "COPY" and not step.value.startswith("--from"):
            for name in step.value.split()[:-1]:
                source = CHECKOUT / name
                if source.is_dir():
                    shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(source, folder / name)


def test_the_steps_make_a_working_installation(tmp_path: Path) -> None:
    steps = instructions(DOCKERFILE.read_text())
    build = tmp_path / "build"
    build.mkdir()
    copy_as_the_image_does(steps, build)
    (uv_version,) = [step.value.partition("=")[2] for step in steps if step.value.startswith("UV_VERSION=")]
    venv, project = tmp_path / "venv", tmp_path / "project"
    bootstrap = tmp_path / "bootstrap"
    foreign = ("PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX")
    environment = {name: value for name, value in os.environ.items() if name not in foreign} | {
        "VIRTUAL_ENV": str(venv),
        "PROJECT": str(project),
        "UV_VERSION": uv_version,
        "UV_FIND_LINKS": os.environ.get("UV_FIND_LINKS", os.environ.get("PIP_FIND_LINKS", "")),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    subprocess.run([sys.executable, "-m", "venv", bootstrap], check=True)  # the image's own Python
    environment["PATH"] = f"{bootstrap / 'bin'}{os.pathsep}{environment['PATH']}"
    lines = dict.fromkeys(step.value for step in steps if step.name == "RUN" and " install " in step.value)
    assert len(lines) == 3  # uv and the environment; packages; the project
    for line in lines:
        run(line, cwd=build, environment=environment)
    clean = {"PATH": f"{venv / 'bin'}:{project / 'bin'}:{os.defpath}", "PYTHONPATH": str(project)}
    clean |= {"HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    recipe = project / "jobs" / "recipes" / "scenes.yaml"
    # As a pod runs it: from another folder, with nothing of the checkout in reach.
    run(
        'test "$(ldznet --version)" && ray --version && command -v weed mlflow',
        cwd=tmp_path,
        environment=clean,
    )
    run(f"python -m jobs.precompute {recipe} --dry-run", cwd=tmp_path, environment=clean)
    check = (
        "import pipeline, sys; assert pipeline.__file__.startswith(sys.argv[1]); import torch, ray, deepspeed"
    )
    run(f'python -c "{check}" {project}', cwd=tmp_path, environment=clean)
