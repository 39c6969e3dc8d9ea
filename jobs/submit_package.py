"""What a submitted job runs in: the project folder without data, caches, runs and secrets, as one archive."""

import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.submit_ignore import IgnoreRules
from ldznet.errors import UserError

LARGEST_MIB = 100
_LARGEST_NAMED = 5
_SHORTEST_SECRET = 12  # a shorter value is as likely a word of the text
_IGNORE_FILES = (".gitignore", ".rayignore")
# Whatever a project's own .gitignore and .rayignore say, and take back; git's syntax.
_NEVER = (
    ".git", ".hg", ".svn", ".venv", "venv", ".env", ".env.*", "*.env", "node_modules", "__pycache__", "*.egg-info",
    ".*_cache", ".cache", ".hypothesis", ".ipynb_checkpoints", "/runs", "/data", "/mlruns", "*.db",
    "*.pem", "*.key", ".netrc", ".pgpass", ".aws", ".ssh", ".ray", ".kube", "auth_token", "id_rsa*", "id_ed25519*",
)  # fmt: skip
_EPOCH = (1980, 1, 1, 0, 0, 0)  # equal files make equal archives, which the cluster then has already


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """The files that go along: name in the job's working directory -> file here."""

    files: Mapping[str, Path]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files.values())

    def largest_files(self) -> str:
        """The largest files with their sizes."""
        return _told({name: path.stat().st_size for name, path in self.files.items()})

    def write(self, archive: Path) -> None:
        """Write the archive; equal files give equal bytes."""
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, path in sorted(self.files.items()):
                packed.writestr(zipfile.ZipInfo(name, _EPOCH), path.read_bytes(), zipfile.ZIP_DEFLATED)


def collect_package(folder: Path, *, extra: Mapping[str, Path], secrets: Mapping[str, str]) -> Package:
    """Gather a project folder's files.

    Args:
        folder: of the project. What its .gitignore or its .rayignore files name, each as git reads them, stays here;
            so does what is never sent, which neither can take back.
        extra: further files, under these names.
        secrets: variable -> value; no file may hold one.

    Raises:
        UserError: it is too large, or a file holds a secret.
    """
    never = IgnoreRules.of_lines(folder, _NEVER)
    rules = [never, *(IgnoreRules(name=name) for name in _IGNORE_FILES)]
    found = (path for path in _walk(folder, rules) if _may_be_followed(path, folder, never))
    files = {path.relative_to(folder).as_posix(): path for path in found} | dict(extra)
    package = Package(files=files)
    _refuse_too_large(package)
    _refuse_secrets(package, secrets)
    return package


def _walk(folder: Path, rules: Sequence[IgnoreRules]) -> Iterator[Path]:
    """The files that no rules name, below a folder that none names either."""
    rules = [one.entering(folder) for one in rules]
    for path in sorted(folder.iterdir()):
        is_folder = path.is_dir() and not path.is_symlink()
        if any(one.ignores(path, is_folder=is_folder) for one in rules):
            continue
        if is_folder:
            yield from _walk(path, rules)
        elif path.is_file():
            yield path


def _may_be_followed(path: Path, top: Path, never: IgnoreRules) -> bool:
    """Whether a link, if the path is one, leads neither out of the project nor to what is never sent."""
    if not path.is_symlink():
        return True
    target, real_top = path.resolve(), top.resolve()
    if not target.is_relative_to(real_top):
        return False
    parts = target.relative_to(real_top).parts
    way = [top.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    return not any(never.ignores(one, is_folder=one.is_dir()) for one in way)


def _refuse_too_large(package: Package) -> None:
    size = package.size
    if size <= LARGEST_MIB << 20:
        return
    raise UserError(
        f"the working directory holds {size / 2**20:.0f} MiB in {len(package.files)} files, more than "
        f"{LARGEST_MIB} MiB: {_largest(package)}; name what the job does not need in .rayignore (as in .gitignore), "
        "and put data on the object store"
    )


def _largest(package: Package) -> str:
    """The largest files and folders directly below the top, with their sizes."""
    sizes: dict[str, int] = {}
    for name, path in package.files.items():
        place, _, below = name.partition("/")
        place = f"{place}/" if below else place
        sizes[place] = sizes.get(place, 0) + path.stat().st_size
    return _told(sizes)


def _told(sizes: Mapping[str, int]) -> str:
    named = sorted(sizes, key=sizes.__getitem__, reverse=True)[:_LARGEST_NAMED]
    return ", ".join(f"{place} {sizes[place] / 2**20:.1f} MiB" for place in named)


def _refuse_secrets(package: Package, secrets: Mapping[str, str]) -> None:
    wanted = {name: os.fsencode(value) for name, value in secrets.items() if len(value) >= _SHORTEST_SECRET}
    if not wanted:
        return
    for name, path in package.files.items():
        content = path.read_bytes()
        for variable, value in wanted.items():
            if value in content:
                raise UserError(
                    f"{name} holds the value of {variable}, and Ray keeps what it is sent: take it out, or name the "
                    "file in .rayignore"
                )
