"""What is asked of `ldznet submit`, checked as far as this machine can tell before the cluster is asked anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from jobs.submit_environment import environment_secrets, forwarded_variables
from jobs.submit_places import place_overrides_of_all, relative_places
from jobs.submit_request import JobRequest, job_named, make_request, refuse_secrets
from ldznet.errors import UserError

if TYPE_CHECKING:
    from jobs.entry import RecipeJob
    from pipeline.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A job, its recipe and its options, without a mistake that can be seen from here."""

    job: "RecipeJob"
    path: Path  # of the recipe
    overrides: Sequence[str]
    flags: Sequence[str]
    folder: Path  # of the project
    recipes: "Sequence[Recipe]"  # as they were asked for; several of a grid
    environment: Mapping[str, str]
    secrets: Mapping[str, str]

    @classmethod
    def of(
        cls,
        job: str,
        path: Path,
        *,
        overrides: Sequence[str],
        flags: Sequence[str],
        folder: Path,
        variables: Sequence[str],
    ) -> Self:
        """Read and check what was asked.

        Args:
            job: its name.
            path: of the recipe.
            overrides: of the recipe.
            flags: the job's own switches, `--` included.
            folder: of the project.
            variables: NAME or NAME=VALUE, beside those that go unasked.

        Raises:
            UserError: of the first mistake.
        """
        found = job_named(job)
        _refuse_flags(found, flags)
        if not folder.is_dir():
            raise UserError(f"--working-dir {folder}: there is no such folder")
        recipes = found.recipes(path, overrides)
        secrets = environment_secrets()
        for recipe in recipes:
            refuse_secrets(recipe, secrets)
        return cls(
            job=found,
            path=path,
            overrides=tuple(overrides),
            flags=tuple(flags),
            folder=folder,
            recipes=recipes,
            environment=forwarded_variables(variables),
            secrets=secrets,
        )

    def request(self, *, here: bool | None) -> JobRequest:
        """What to send.

        Args:
            here: whether all nodes are this machine. None: not known, and relative folders are left as they are.

        Raises:
            UserError: see `place_overrides_of_all` and `make_request`.
        """
        placed: list[str] = []
        if here is not None:
            placed = place_overrides_of_all(self.recipes, folder=self.folder, here=here)
        overrides = [*self.overrides, *placed]
        return make_request(
            self.job.name,
            self.job.recipes(self.path, overrides),
            path=self.path,
            overrides=overrides,
            flags=self.flags,
            folder=self.folder,
            environment=self.environment,
            secrets=self.secrets,
        )

    def describe_unasked(self) -> str:
        """What would be sent, for a person, where no cluster can be asked whether its nodes are this machine."""
        told = self.request(here=None).describe()
        relative = ", ".join(relative_places(self.recipes[0], folder=self.folder))
        if not relative:
            return told
        return (
            f"{told}\nnot known: whether all nodes are this machine. Then relative folders are its own, else they are "
            f"refused: {relative}"
        )


def _refuse_flags(job: "RecipeJob", flags: Sequence[str]) -> None:
    known = [f"--{flag}" for flag in job.flags]
    for flag in flags:
        if flag not in known:
            there = f"it has {', '.join(known)}" if known else "it has none"
            raise UserError(f"{job.name} has no flag {flag}: {there}")
