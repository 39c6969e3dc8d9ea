"""A job as it is sent to a cluster: what runs, in which files and variables, and what is noted with it."""

import hashlib
import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from jobs.submit_package import Package, collect_package
from jobs.submit_writes import labelled_recipes, lasting_results, trainings
from ldznet.errors import UserError
from pipeline.tracking.config import SUBMISSION

if TYPE_CHECKING:
    from jobs.entry import RecipeJob
    from pipeline.recipe import Recipe

RECIPE_JOBS = ("pipeline", "scenes", "miniature", "precompute", "train", "evaluate", "probe")
IDENTITY, DIGEST, JOB = "ldznet.identity", "ldznet.recipe_digest", "ldznet.job"
TRAINS, WRITES = "ldznet.trains", "ldznet.writes"  # lists of places as JSON, where there are any
_PLATFORM = "leave it out, and set it on the nodes, from the platform's secrets (docs/cluster.md)"
_OUTSIDE = "submitted"  # where a recipe goes that lies outside the project's folder


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """One job to submit."""

    ID_VARIABLE: ClassVar[str] = SUBMISSION  # tells the job its own id, for its MLflow runs

    job: str
    words: tuple[str, ...]  # the entrypoint's
    package: Package
    environment: Mapping[str, str]
    metadata: Mapping[str, str]

    @property
    def entrypoint(self) -> str:
        """What a shell on the head runs."""
        return shlex.join(self.words)

    def is_identical(self, other: Mapping[str, str]) -> bool:
        """Whether a job with that metadata is this one: same words, files and variables."""
        return other.get(IDENTITY) == self.metadata[IDENTITY]

    def clash(self, other: Mapping[str, str]) -> str | None:
        """What a job with that metadata does that this one must not do at the same time; None: nothing.

        It does the same work on the same recipe in another way, trains the same network, or replaces the same results
        (see `jobs.submit_writes`).
        """
        jobs = {self.job, other.get(JOB)}
        if other.get(DIGEST) == self.metadata[DIGEST] and (len(jobs) == 1 or "pipeline" in jobs):
            return "runs on this recipe, with other code or options"
        if training := self._common(TRAINS, other):
            return f"runs the same training, {training}"
        if result := self._common(WRITES, other):
            return f"writes {result} too (output=FOLDER gives this one a folder of its own)"
        return None

    def submission_id(self, *, taken: Collection[str]) -> str:
        """Follows from job and training, or recipe: of two at the same instant the cluster takes one.

        A `train` and a `pipeline` have other ids: two that are sent within the same second do not see each other.
        """
        what = self.metadata.get(TRAINS)
        digest = self.metadata[DIGEST] if what is None else hashlib.sha256(what.encode()).hexdigest()
        first = f"{self.job}-{self.metadata['ldznet.recipe']}-{digest[:10]}"
        numbered = (first if number == 1 else f"{first}-{number}" for number in range(1, len(taken) + 2))
        return next(name for name in numbered if name not in taken)

    def describe(self) -> str:
        """Exactly what would be sent, for a person; of variables the names."""
        lines = {
            "entrypoint": self.entrypoint,
            "files": f"{len(self.package.files)}, {self.package.size:,} bytes",
            "largest": self.package.largest_files(),
            "variables": ", ".join([*sorted(self.environment), self.ID_VARIABLE]),
            **self.metadata,
        }
        width = max(map(len, lines))
        return "\n".join(f"{label:<{width}}  {text}" for label, text in lines.items())

    def _common(self, key: str, other: Mapping[str, str]) -> str | None:
        theirs = json.loads(other.get(key, "[]"))
        return next((place for place in json.loads(self.metadata.get(key, "[]")) if place in theirs), None)


def job_named(name: str) -> "RecipeJob":
    """A job that can be submitted."""
    if name not in RECIPE_JOBS:
        raise UserError(f"there is no job {name!r} to submit: there are {', '.join(RECIPE_JOBS)}")
    job: RecipeJob = import_module(f"jobs.{name}").main
    return job


def make_request(
    job: str,
    recipes: "Sequence[Recipe]",
    *,
    path: Path,
    overrides: Sequence[str],
    flags: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    secrets: Mapping[str, str],
) -> JobRequest:
    """Put together what is sent.

    Args:
        job: of `RECIPE_JOBS`.
        recipes: as the job will resolve them; several of a grid.
        path: their file.
        overrides: of the recipe.
        flags: the job's own switches, `--` included.
        folder: of the project.
        environment: variables for the job.
        secrets: variable -> value; nothing that is sent may hold one.

    Raises:
        UserError: the files are too many bytes, or something holds a secret.
    """
    for recipe in recipes:
        refuse_secrets(recipe, secrets)
    inside = path.resolve().is_relative_to(folder.resolve())
    name = path.resolve().relative_to(folder.resolve()).as_posix() if inside else f"{_OUTSIDE}/{path.name}"
    package = collect_package(folder, extra={name: path}, secrets=secrets)
    if any(secret in word for word in overrides for secret in secrets.values()):
        raise UserError(f"an override holds a credential, and Ray keeps what it is sent: {_PLATFORM}")
    words = ("python", "-m", f"jobs.{job}", name, *overrides, *flags)
    code = _files_digest(package)
    identity = hashlib.sha256(json.dumps([words, code, dict(environment)]).encode()).hexdigest()
    first = recipes[0]
    requests = {f"ldznet.request.{one}": first.request_digest(one) for one in first.sets}
    labelled = labelled_recipes(job, recipes, path=path, overrides=overrides)
    places = {TRAINS: trainings(job, labelled), WRITES: lasting_results(job, labelled)}
    noted = {key: json.dumps(found, separators=(",", ":")) for key, found in places.items() if found}
    metadata = {
        JOB: job,
        "ldznet.version": version("ldznet"),
        "ldznet.recipe": first.name,
        DIGEST: first.digest() if len(recipes) == 1 else _digest_of_all(recipes),
        "ldznet.files_digest": code,
        IDENTITY: identity,
        **requests,
        **noted,
    }
    return JobRequest(job=job, words=words, package=package, environment=environment, metadata=metadata)


def refuse_secrets(recipe: "Recipe", secrets: Mapping[str, str]) -> None:
    """A recipe is kept by Ray, MLflow and the cache: it holds no credential.

    Raises:
        UserError: it does; the key is named, the value is not.
    """
    from pipeline.tracking.params import leaves
    from pipeline.tracking.redaction import redacted

    content = recipe.model_dump(mode="json")
    clean = dict(leaves(redacted(content)))
    for key, value in leaves(content):
        if clean.get(key) != value or any(secret in str(value) for secret in secrets.values()):
            raise UserError(
                f"the recipe's {key} holds a credential, and Ray and MLflow keep what they are sent: {_PLATFORM}"
            )


def _digest_of_all(recipes: "Sequence[Recipe]") -> str:
    return hashlib.sha256("\n".join(recipe.digest() for recipe in recipes).encode()).hexdigest()


def _files_digest(package: Package) -> str:
    digest = hashlib.sha256()
    for name, path in sorted(package.files.items()):
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
