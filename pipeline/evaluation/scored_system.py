"""The systems that an evaluation scores side by side: our networks, CLIPSeg, and masks that others made."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import nn

from ldznet.builtin_models import PREFIX as BUILTIN
from ldznet.clipseg import CLIPSeg, clipseg_folder, is_clipseg, model_type
from ldznet.errors import UserError
from ldznet.frozen_ldm import FrozenLDM
from ldznet.ldm_folder import ldm_digest as digest_of_ldm
from ldznet.ldm_folder import resolve_ldm
from ldznet.modeling import SegmentationNetwork, network_from_pretrained
from ldznet.modeling.pretrained import CONFIG_FILE
from ldznet.noise_map import NoiseMaps
from ldznet.prediction_config import FILE_NAME as PREDICTION_FILE
from ldznet.prediction_config import PredictionConfig
from pipeline.evaluation.mask_folder import MaskFolder, holds_masks
from pipeline.evaluation.original_samples import OriginalSamples
from pipeline.evaluation.others_features import OthersFeatures
from pipeline.evaluation.probability_maps import LogitMaps, PlainMaps, ProbabilityMaps
from pipeline.evaluation.scoring import network_predictor
from pipeline.loading.batch import Batch
from pipeline.models.registered import resolve_model
from pipeline.recipe import SystemConfig

logger = logging.getLogger(__name__)

Family = Literal["network", "clipseg", "masks", "noise_map"]
NOISE_MAP = "noise-map"  # the source that names the frozen LDM itself
_NOT_IN_NAMES = re.compile(r"[^\w. -]")  # MLflow takes no others in a metric's name


@dataclass(frozen=True, kw_only=True, slots=True)
class LocatedSystem:
    """A system found and told apart, not loaded yet."""

    config: SystemConfig
    family: Family
    folder: Path
    name: str


class ScoredSystem(Protocol):
    """Something that predicts masks for batches of a cached set."""

    @property
    def kind(self) -> str:
        """What it is, for tables."""
        ...

    @property
    def parameters(self) -> int | None:
        """How many numbers it has, where that is known."""
        ...

    def covers(self, set_name: str) -> bool:
        """Whether it can predict the whole of a set that nobody asked to score: to choose a threshold on."""
        ...

    @property
    def binary(self) -> bool:
        """Whether all that it predicted so far were plain masks, for which every threshold is alike."""
        ...

    def predict(self, batch: Batch, *, set_name: str, originals: OriginalSamples) -> ProbabilityMaps:
        """Predictions for one batch."""
        ...


def locate_system(config: SystemConfig, *, tracking_uri: str | None) -> LocatedSystem:
    """Find a system and tell what it is, without loading it.

    Raises:
        UserError: nothing is there, or nothing that can be scored.
    """
    source = config.source
    name = config.name or _NOT_IN_NAMES.sub(
        "-", Path(source.removeprefix("models:/").removeprefix(BUILTIN)).name
    )
    if source.startswith(("models:", BUILTIN)):
        return LocatedSystem(
            config=config, family="network", folder=resolve_model(source, tracking_uri), name=name
        )
    if source == NOISE_MAP:
        return LocatedSystem(config=config, family="noise_map", folder=Path(NOISE_MAP), name=name)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if folder.exists() or source.count("/") != 1 or source.startswith((".", "~")):
            raise UserError(
                f"evaluate.models: there is no folder {source}: give a model folder, models:/NAME@ALIAS, "
                f"builtin:NAME, a CLIPSeg folder or hub id, a folder of masks, or {NOISE_MAP}"
            )
        return LocatedSystem(config=config, family="clipseg", folder=clipseg_folder(source), name=name)
    if is_clipseg(folder):
        return LocatedSystem(config=config, family="clipseg", folder=clipseg_folder(folder), name=name)
    if (folder / PREDICTION_FILE).is_file() or (folder / CONFIG_FILE).is_file():
        if model_type(folder) is not None:
            raise UserError(
                f"evaluate.models: {source} holds a {model_type(folder)}, which is not scored here"
            )
        return LocatedSystem(config=config, family="network", folder=folder, name=name)
    if holds_masks(folder):
        return LocatedSystem(config=config, family="masks", folder=folder, name=name)
    raise UserError(
        f"evaluate.models: {source} is no model folder of this project (no {PREDICTION_FILE}), no CLIPSeg, "
        "and holds no masks (.png, .npy)"
    )


def open_system(
    located: LocatedSystem, *, ldm_source: str, ldm_digest: str, device: torch.device
) -> ScoredSystem:
    """Load a system.

    Args:
        located: the system.
        ldm_source: the recipe's frozen LDM.
        ldm_digest: of the LDM whose features the cache holds.
        device: where it runs.

    Raises:
        UserError: it cannot be loaded, or is a network trained on another LDM than the cache's.
    """
    match located.family:
        case "network":
            return _Network(
                located.folder, ldm_digest=ldm_digest, features=located.config.features, device=device
            )
        case "clipseg":
            return _ClipSeg(located, device=device)
        case "masks":
            return _Masks(located.folder)
        case "noise_map":
            return _NoiseMap(located.config, ldm_source=ldm_source, ldm_digest=ldm_digest, device=device)


class _Network:
    """One of our networks, on cached features."""

    binary = False

    def __init__(
        self, folder: Path, *, ldm_digest: str, features: Literal["own", "others"], device: torch.device
    ) -> None:
        trained_on = PredictionConfig.load(folder).ldm_digest
        if trained_on not in {None, ldm_digest}:
            raise UserError(
                f"{folder} was trained on features of another LDM than this recipe's: name the right ldm.source"
            )
        if trained_on is None:
            logger.warning("%s does not say which LDM it was trained on: taken for this recipe's", folder)
        self._network: SegmentationNetwork = network_from_pretrained(folder)
        self._predict = network_predictor(self._network, device=device)
        self._others = OthersFeatures() if features == "others" else None

    @property
    def kind(self) -> str:
        """The network's kind, and its fusion where that is not the paper's own."""
        config = self._network.config
        concat = config.kind == "ldznet" and config.fusion == "concat"
        return f"{config.kind} (concat)" if concat else config.kind

    @property
    def parameters(self) -> int | None:
        """See `ScoredSystem`."""
        return _count(self._network)

    def covers(self, _set_name: str) -> bool:
        """See `ScoredSystem`."""
        return True

    def predict(self, batch: Batch, *, set_name: str, originals: OriginalSamples) -> ProbabilityMaps:  # noqa: ARG002
        """See `ScoredSystem`."""
        return LogitMaps(self._predict(batch if self._others is None else self._others.exchanged(batch)))


class _ClipSeg:
    """CLIPSeg, online, on the photos or on the cached views of them."""

    binary = False
    kind = "clipseg"

    def __init__(self, located: LocatedSystem, *, device: torch.device) -> None:
        self._model = CLIPSeg.from_pretrained(located.folder, device=device, template=located.config.prompt)
        self._pixels = located.config.pixels

    @property
    def parameters(self) -> int | None:
        """See `ScoredSystem`."""
        return self._model.parameters

    def covers(self, _set_name: str) -> bool:
        """See `ScoredSystem`."""
        return True

    def predict(self, batch: Batch, *, set_name: str, originals: OriginalSamples) -> ProbabilityMaps:  # noqa: ARG002
        """See `ScoredSystem`."""
        in_view = self._pixels == "view"
        photos = _views(batch) if in_view else [originals.photo(facts) for facts in batch.facts]
        return LogitMaps(self._model(photos, [str(facts["phrase"]) for facts in batch.facts]))


class _Masks:
    """A folder of masks by any other system."""

    kind = "masks"
    parameters = None

    def __init__(self, folder: Path) -> None:
        self._folder = MaskFolder(folder)

    @property
    def binary(self) -> bool:
        """See `ScoredSystem`."""
        return self._folder.binary

    def covers(self, set_name: str) -> bool:
        """See `ScoredSystem`."""
        return self._folder.has(set_name)

    def predict(self, batch: Batch, *, set_name: str, originals: OriginalSamples) -> ProbabilityMaps:  # noqa: ARG002
        """See `ScoredSystem`."""
        return PlainMaps(
            [
                self._folder.read(set_name, key=key, facts=facts)
                for key, facts in zip(batch.keys, batch.facts, strict=True)
            ]
        )


class _NoiseMap:
    """The frozen LDM, untrained: where a phrase changes its noise estimate. Reads latents and prompts of the cache."""

    kind = "noise map"
    parameters = None
    binary = False

    def __init__(
        self, config: SystemConfig, *, ldm_source: str, ldm_digest: str, device: torch.device
    ) -> None:
        folder = resolve_ldm(ldm_source)
        if digest_of_ldm(folder) != ldm_digest:
            raise UserError(f"{folder} is another LDM than the one whose features the cache holds")
        self._ldm = FrozenLDM.from_pretrained(folder, device=device, components=("unet", "text_encoder"))
        self._maps = NoiseMaps(ldm=self._ldm, config=config.noise_map)

    def covers(self, _set_name: str) -> bool:
        """See `ScoredSystem`."""
        return True

    def predict(self, batch: Batch, *, set_name: str, originals: OriginalSamples) -> ProbabilityMaps:  # noqa: ARG002
        """See `ScoredSystem`."""
        context = self._ldm.encode_prompts([str(facts["prompt"]) for facts in batch.facts])
        maps = self._maps.maps(batch.latents, context)
        return PlainMaps(list(maps[:, 0].cpu().numpy()))  # B,1,h,w -> B of h,w


def _views(batch: Batch) -> list[Image.Image]:
    if batch.images is None:
        raise UserError(
            "CLIPSeg with pixels: view needs views in the cache: set features.keep_images=true and precompute, "
            "or take pixels: photo"
        )
    pixels = (
        ((batch.images + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    )  # B,3,H,W -> B,H,W,3
    return [Image.fromarray(np.asarray(one)) for one in pixels.cpu().numpy()]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
