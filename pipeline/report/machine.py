"""What a run ran on: the machine, and the versions of what matters."""

import importlib.metadata
import os
import platform
from pathlib import Path

_PACKAGES = (
    "ldznet", "torch", "diffusers", "transformers", "deepspeed", "ray", "mlflow", "webdataset", "numpy", "safetensors",
)  # fmt: skip


def machine_facts() -> dict[str, str]:
    """Processor, cores open to this process, memory, GPUs, system."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "Processor": f"{_processor()}, {cores} cores",
        "Memory": f"{memory:.0f} GiB",
        "GPU": ", ".join(gpus) if gpus else "none: everything ran on the CPU",
        "System": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "Python": platform.python_version(),
    }


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that a run's numbers and speed depend on."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    if described.is_file():
        for line in described.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
