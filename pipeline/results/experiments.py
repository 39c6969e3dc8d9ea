"""What docs/results.md compares: networks trained on scenes, each by a recipe, overrides and a seed.

All share one recipe, and so one cache where their features are equal. A training that two experiments name is one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from ldznet.errors import UserError
from ldznet.noise_map_config import NoiseMapConfig
from pipeline.recipe import SystemConfig

SHIPPED: Final = SystemConfig(source="builtin:scenes-128-ldznet")
NOISE_MAP: Final = SystemConfig(source="noise-map", noise_map=NoiseMapConfig(seeds=(0, 1)))
NETWORKS: Final = {
    "ldznet": ("network.kind=ldznet",),
    "ldznet-concat": ("network.kind=ldznet", "network.fusion=concat"),
    "znet": ("network.kind=znet",),
    "rgbnet": ("network.kind=rgbnet",),
}
RANDOM_START: Final = ", random start"
OTHERS_FEATURES: Final = ", others' features"
_CONTROL: Final = "-others-features"
_FINER: Final = "ldznet, blocks 11 to 13"
_FEATURES_TELL: Final = "ldznet, phrase by features"
_FEATURES_TELL_FINER: Final = "ldznet, phrase by features of 11 to 13"
_FEATURES_TELL_CONCAT: Final = "ldznet-concat, phrase by features of 11 to 13"
_BLIND: Final = "znet, no phrase"
_FINER_BLOCKS = ("network.blocks=[11,12,13]", "features.blocks=[6,7,8,9,10,11,12,13]")
_NO_TEXT = ("network.text=none",)
_LABELS: Final = {"300 phrases": "train_on=train_300", "1,000 phrases": "train_on=train_1000"}
_INT8 = ("features.stored_dtype=int8", "features.stored_from=fp16")
_FP8 = ("features.stored_dtype=fp8", "features.stored_from=fp16")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One training: which system it is of, and how its recipe differs."""

    system: str
    overrides: tuple[str, ...]
    seed: int

    @property
    def label(self) -> str:
        """Names its model's folder."""
        plain = "".join(letter if letter.isalnum() or letter == "-" else "-" for letter in self.system)
        return f"{plain}-seed-{self.seed}"

    @property
    def all_overrides(self) -> tuple[str, ...]:
        """With the seed's."""
        return (*self.overrides, f"train.seed={self.seed}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """Trainings that are compared on some sets, beside systems that are not trained here."""

    name: str
    cells: tuple[Cell, ...]
    sets: tuple[str, ...]
    steps: int
    others: tuple[SystemConfig, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()  # systems whose differences are told
    # Systems that are scored once more with other samples' features: `NAME, others' features`.
    controls: tuple[str, ...] = ()
    shown: str | None = None  # the set of the picture

    def only(self, *, systems: Iterable[str] = (), seeds: Iterable[int] = ()) -> "Experiment":
        """With some of the cells; nothing named is all.

        Raises:
            UserError: no cell is of these systems and seeds.
        """
        chosen = [cell for cell in self.cells if not systems or cell.system in systems]
        chosen = [cell for cell in chosen if not seeds or cell.seed in seeds]
        if not chosen:
            names = ", ".join(dict.fromkeys(f"{cell.system!r}" for cell in self.cells))
            numbers = ", ".join(map(str, sorted({cell.seed for cell in self.cells})))
            raise UserError(f"{self.name} has no such training: its systems are {names}, its seeds {numbers}")
        return replace(self, cells=tuple(chosen))

    @property
    def systems(self) -> tuple[str, ...]:
        """What is trained, in the order of tables; a system's control behind it."""
        return tuple(
            name
            for system in dict.fromkeys(cell.system for cell in self.cells)
            for name in (system, *([f"{system}{OTHERS_FEATURES}"] if system in self.controls else []))
        )

    @property
    def labels(self) -> dict[tuple[str, int], str]:
        """Under what an evaluation knows each system and seed, those with others' features too."""
        own = {(cell.system, cell.seed): cell.label for cell in self.cells}
        of_controls = {
            (f"{system}{OTHERS_FEATURES}", seed): f"{label}{_CONTROL}"
            for (system, seed), label in own.items()
            if system in self.controls
        }
        return own | of_controls

    def scored_as(self, cell: Cell, folder: str) -> list[tuple[str, SystemConfig]]:
        """What is scored of a trained cell: names of systems, and what to score."""
        asked = [(cell.system, SystemConfig(source=folder, name=cell.label))]
        if cell.system in self.controls:
            control = SystemConfig(source=folder, name=f"{cell.label}{_CONTROL}", features="others")
            asked.append((f"{cell.system}{OTHERS_FEATURES}", control))
        return asked

    def makes(self, model: str, *, seed: int | None, set_name: str) -> bool:
        """Whether a run makes a row of this system. Those that are not trained here have no seed, and always run."""
        return set_name in self.sets and (seed is None or (model, seed) in self.labels)


def _cells(systems: dict[str, tuple[str, ...]], *, seeds: tuple[int, ...] = (1,)) -> tuple[Cell, ...]:
    # Seed by seed: what is done early is a whole comparison.
    return tuple(
        Cell(system=system, overrides=overrides, seed=seed)
        for seed in seeds
        for system, overrides in systems.items()
    )


EXPERIMENTS: Final = {
    one.name: one
    for one in (
        Experiment(
            name="table",
            cells=_cells(NETWORKS, seeds=(1, 2, 3)),
            sets=("test", "foreign", "held_out", "shuffled"),
            steps=300,
            others=(SHIPPED, NOISE_MAP),
            pairs=(("ldznet", "znet"), ("znet", "rgbnet"), ("ldznet", "ldznet-concat")),
            shown="foreign",
        ),
        Experiment(
            name="start",
            cells=_cells(
                {
                    f"{network}{RANDOM_START}": (*overrides, "network.init_from=random")
                    for network, overrides in NETWORKS.items()
                }
            ),
            sets=("test", "foreign"),
            steps=300,
            pairs=tuple(
                (f"{one}{RANDOM_START}", f"{other}{RANDOM_START}")
                for one, other in (("ldznet", "znet"), ("znet", "rgbnet"), ("ldznet", "ldznet-concat"))
            ),
        ),
        Experiment(
            name="blocks",
            cells=_cells(
                {
                    "znet": NETWORKS["znet"],
                    "ldznet": NETWORKS["ldznet"],
                    _FINER: _FINER_BLOCKS,
                },
                seeds=(1, 2, 3),
            ),
            sets=("test", "foreign"),
            steps=300,
            controls=("ldznet", _FINER),
            pairs=(
                (_FINER, "znet"),
                (_FINER, "ldznet"),
                (_FINER, f"{_FINER}{OTHERS_FEATURES}"),
                ("ldznet", f"ldznet{OTHERS_FEATURES}"),
            ),
        ),
        Experiment(
            name="text",
            cells=_cells(
                {
                    _BLIND: (*NETWORKS["znet"], *_NO_TEXT),
                    _FEATURES_TELL: (*NETWORKS["ldznet"], *_NO_TEXT),
                    _FEATURES_TELL_FINER: (*NETWORKS["ldznet"], *_NO_TEXT, *_FINER_BLOCKS),
                    _FEATURES_TELL_CONCAT: (*NETWORKS["ldznet-concat"], *_NO_TEXT, *_FINER_BLOCKS),
                },
                seeds=(1, 2, 3),
            ),
            sets=("test", "foreign"),
            steps=300,
            controls=(_FEATURES_TELL, _FEATURES_TELL_FINER, _FEATURES_TELL_CONCAT),
            pairs=(
                *(
                    pair
                    for system in (_FEATURES_TELL, _FEATURES_TELL_FINER, _FEATURES_TELL_CONCAT)
                    for pair in ((system, _BLIND), (system, f"{system}{OTHERS_FEATURES}"))
                ),
                (_FEATURES_TELL_FINER, _FEATURES_TELL_CONCAT),
            ),
        ),
        Experiment(
            name="longer",
            cells=_cells(
                {
                    _BLIND: (*NETWORKS["znet"], *_NO_TEXT),
                    _FEATURES_TELL_FINER: (*NETWORKS["ldznet"], *_NO_TEXT, *_FINER_BLOCKS),
                    _FEATURES_TELL_CONCAT: (*NETWORKS["ldznet-concat"], *_NO_TEXT, *_FINER_BLOCKS),
                    "znet": NETWORKS["znet"],
                    _FINER: _FINER_BLOCKS,
                }
            ),
            sets=("test", "foreign"),
            steps=900,
            controls=(_FEATURES_TELL_FINER, _FEATURES_TELL_CONCAT, _FINER),
            pairs=(
                (_FEATURES_TELL_FINER, _BLIND),
                (_FEATURES_TELL_FINER, f"{_FEATURES_TELL_FINER}{OTHERS_FEATURES}"),
                (_FEATURES_TELL_FINER, _FEATURES_TELL_CONCAT),
                (_FEATURES_TELL_CONCAT, _BLIND),
                (_FINER, "znet"),
                (_FINER, f"{_FINER}{OTHERS_FEATURES}"),
            ),
        ),
        Experiment(
            name="labels",
            cells=_cells(
                {
                    f"{network}, {count}": (*NETWORKS[network], *chosen)
                    for network in ("ldznet", "znet", "rgbnet")
                    for count, chosen in {
                        **{count: (override,) for count, override in _LABELS.items()},
                        "all phrases": (),
                    }.items()
                }
            ),
            sets=("test", "foreign"),
            steps=300,
        ),
        Experiment(
            name="ablations",
            cells=_cells(
                {
                    "as published": NETWORKS["ldznet"],
                    "block 8 alone": ("network.blocks=[8]",),
                    "blocks 7 to 9": ("network.blocks=[7,8,9]",),
                    "timestep 400 alone": ("train_on=train_400",),
                    "sinusoidal positions": ("network.positional=sinusoidal",),
                    "stored as int8": _INT8,
                    "stored as fp8": _FP8,
                }
            ),
            sets=("test", "foreign"),
            steps=300,
        ),
    )
}
