"""LitData, in a virtual environment of its own that shares this project's torch: made once, outside the checkout.

LitData asks for torchvision, which its streaming does not need; what it does need is installed, by name and version.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from uuid import uuid4

PACKAGES = ("litdata==0.2.76", "lightning-utilities==0.15.3", "obstore==0.12.1", "tifffile==2026.3.3")
PROGRAM = Path(__file__).with_name("litdata_side.py")


class PeerMissingError(Exception):
    """The peer cannot be installed here; says why."""


def peer_python() -> Path:
    """The Python that has LitData; installed at the first call.

    Raises:
        PeerMissingError: no package registry is reached, or what it gives does not run.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = f"{PACKAGES[0].replace('==', '-')}-python{platform.python_version()}"
    folder = home / "ldznet" / "benchmark_peers" / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = folder.with_name(f"{name}.{uuid4().hex}")
        try:
            _install(unfinished)
            unfinished.rename(folder)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            last = (error.stderr or b"").decode(errors="replace").strip().splitlines()[-1:]
            raise PeerMissingError(f"LitData cannot be installed: {''.join(last) or error}") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    _share(folder)
    return folder / "bin" / "python"


def prepare(python: Path, shards: Path, folder: Path, *options: str) -> None:
    """The samples of a folder of shards as a LitData data set; options as `litdata_side`'s."""
    subprocess.run(
        [python, PROGRAM, "prepare", shards, folder, *options], check=True, stdout=subprocess.DEVNULL
    )


def _install(folder: Path) -> None:
    python = folder / "bin" / "python"
    _run([sys.executable, "-m", "venv", "--without-pip", folder])
    _run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", *PACKAGES])
    _share(folder)
    _run([python, "-c", "import litdata, obstore"])


def _share(folder: Path) -> None:
    """After its own packages: torch, NumPy, boto3 and the rest are this checkout's, wherever that lies today."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    path = folder / "lib" / version / "site-packages" / "shared.pth"
    path.write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")


def _run(command: list[str | Path]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=600)
