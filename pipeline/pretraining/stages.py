"""The stages of a pretraining, in order: autoencoder, latents, diffusion. Each goes on where it was stopped."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ldznet.miniature_tokenizer import build_tokenizer
from ldznet.pretraining.networks import build_autoencoder, save_autoencoder, save_text_encoder, save_unet
from ldznet.pretraining.objectives import AutoencoderObjective
from ldznet.prompts import TEMPLATES
from pipeline.pretraining.autoencoder_batches import AutoencoderBatches
from pipeline.pretraining.figures import noise_figures, reconstruction_figures, scene_images, validation_batch
from pipeline.pretraining.latent_store import LatentBatches, encoder_of, fill_latents, read_latents
from pipeline.pretraining.loop import Checkpoints, Observer, StageLoop
from pipeline.pretraining.output_folder import asked_mark, check_output, finished_mark
from pipeline.pretraining.parts import fresh_objective, read_autoencoder, read_tokenizer
from pipeline.pretraining.recipe import PretrainRecipe, Stage
from pipeline.pretraining.scene_stream import SceneStream, compose_batch
from pipeline.pretraining.stage_mark import TrainedStage, begin_marks, remove_mark

logger = logging.getLogger(__name__)

_MEASURED_SCENES = 512  # whose latents are given unit standard deviation
_ROWS_A_LINE = 4096


class Pretraining:
    """One pretraining on one rank, in one output folder that all ranks see.

    Args:
        recipe: what to train.
        checkpoints: makes the checkpoint store of a stage.
        observer: makes what is told of a stage, on rank 0.
        until: a `time.monotonic()` after which the stage is left, with a checkpoint.
    """

    def __init__(
        self,
        recipe: PretrainRecipe,
        *,
        checkpoints: Callable[[Stage], Checkpoints],
        observer: Callable[[Stage], Observer] | None = None,
        until: float | None = None,
    ) -> None:
        self._recipe, self._checkpoints, self._until = recipe, checkpoints, until
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._ranks = dist.get_world_size() if dist.is_initialized() else 1
        self._observer = observer if self._rank == 0 else None
        self._device = _device(recipe)
        self._folder = Path(recipe.output_folder)
        self.ldm = self._folder / "ldm"
        torch.set_num_threads(recipe.threads)

    def run(self) -> bool:
        """Every stage that is left; False where time was up before the end."""
        return all(self.run_stage(stage) for stage in ("autoencoder", "latents", "diffusion"))

    def run_stage(self, stage: Stage) -> bool:
        """One stage, unless it is finished already; False where time was up before its end.

        Raises:
            UserError: the folder holds another recipe's stage, or more steps of it.
        """
        check_output(self._recipe)
        if stage == "latents":
            return self._agree(self._rank != 0 or self._latents())
        if stage == "autoencoder":
            self._tokenizer()
        if self._agree(finished_mark(self._folder, stage) == asked_mark(self._recipe, stage)):
            return True
        return self._autoencoder() if stage == "autoencoder" else self._diffusion()

    @contextmanager
    def _weights_of(self, stage: TrainedStage) -> Iterator[None]:
        """Inside, rank 0 writes a stage's weights: the stage has no mark until all are there."""
        begin_marks(self._folder)
        remove_mark(self._folder, stage)
        yield
        asked_mark(self._recipe, stage).save(self._folder)

    def _tokenizer(self) -> None:
        place = self.ldm / "tokenizer"
        if self._rank == 0 and not (place / "tokenizer.json").is_file():
            recipe = self._recipe
            numbers = range(recipe.tokenizer_scenes)
            batch = compose_batch(recipe.scenes, split="train", numbers=numbers, captions=3)
            captions = [caption for each in batch.captions for caption in each]
            size = build_tokenizer(
                place, [*TEMPLATES, *captions], vocabulary_size=recipe.networks.vocabulary_size
            )
            logger.info("tokenizer: %d tokens", size)
        self._wait()

    def _autoencoder(self) -> bool:
        recipe, config = self._recipe, self._recipe.autoencoder
        network = build_autoencoder(recipe.networks, image_side=recipe.scenes.size, seed=recipe.seed)
        batches = AutoencoderBatches(
            stream=self._stream(captions=1),
            seed=recipe.seed,
            batch_size=config.batch_size,
            crop=config.crop,
            rank=self._rank,
            ranks=self._ranks,
        )
        held = scene_images(recipe.scenes, split="val", count=recipe.validation_scenes)
        loop = StageLoop(
            objective=AutoencoderObjective(network.to(self._device), loss=config.loss),
            batches=batches,
            config=config,
            validate=partial(reconstruction_figures, network, held),
            **self._loop_parts("autoencoder"),
        )
        if not loop.run(until=self._until).finished:
            return False
        with loop.averaged():
            if self._rank == 0:
                scaling_factor = self._unit_scale(network)
                with self._weights_of("autoencoder"):
                    save_autoencoder(network, self.ldm, scaling_factor=scaling_factor)
        self._wait()
        return True

    @torch.no_grad()
    def _unit_scale(self, network: Any) -> float:
        """The factor that gives latents unit standard deviation, measured on training scenes."""
        encode = encoder_of(network)
        images = scene_images(self._recipe.scenes, split="train", count=_MEASURED_SCENES)
        moments = torch.cat([encode(part) for part in images.split(32)])  # N,8,h,w
        variance = moments[:, :4].var() + moments[:, 4:].square().mean()
        return round(float(variance.rsqrt()), 5)

    def _latents(self) -> bool:
        recipe = self._recipe
        store = fill_latents(
            self._folder / "latents",
            stream=self._stream(captions=recipe.latents.captions),
            scenes=recipe.latents.scenes,
            batch_size=recipe.latents.batch_size,
            encode=encoder_of(read_autoencoder(self.ldm, device=self._device)),
            tokenize=read_tokenizer(self.ldm),
            identity=recipe.stage_identity("latents"),
            go_on=self._count_rows,
        )
        return store is not None

    def _count_rows(self, done: int) -> bool:
        if done % _ROWS_A_LINE == 0:
            logger.info("latents: %d of %d scenes", done, self._recipe.latents.scenes)
        return self._until is None or time.monotonic() < self._until

    def _diffusion(self) -> bool:
        recipe, config = self._recipe, self._recipe.diffusion
        tokenize = read_tokenizer(self.ldm)
        blank = tokenize([""])[0]
        autoencoder = read_autoencoder(self.ldm, device=self._device)
        objective = fresh_objective(recipe, blank=blank).to(self._device)
        batches = LatentBatches(
            store=read_latents(self._folder / "latents"),
            scaling_factor=float(autoencoder.config.scaling_factor),
            blank=blank,
            seed=recipe.seed,
            batch_size=config.batch_size,
            full_captions=config.full_captions,
            drop_caption=config.loss.drop_caption,
            rank=self._rank,
            ranks=self._ranks,
        )
        held = validation_batch(
            autoencoder,
            tokenize,
            recipe.scenes,
            split="val",
            count=recipe.validation_scenes,
            seed=recipe.seed,
        )
        loop = StageLoop(
            objective=objective,
            batches=batches,
            config=config,
            validate=partial(noise_figures, objective, held, blank),
            **self._loop_parts("diffusion"),
        )
        if not loop.run(until=self._until).finished:
            return False
        with loop.averaged():
            if self._rank == 0:
                with self._weights_of("diffusion"):
                    save_text_encoder(objective.text_encoder, self.ldm)
                    save_unet(objective.unet, self.ldm)
        self._wait()
        return True

    def _loop_parts(self, stage: Stage) -> dict[str, Any]:
        return {
            "device": self._device,
            "identity": self._recipe.stage_identity(stage),
            "checkpoints": self._checkpoints(stage),
            "observer": self._observer(stage) if self._observer else None,
        }

    def _stream(self, *, captions: int) -> SceneStream:
        return SceneStream(
            config=self._recipe.scenes, split="train", captions=captions, workers=self._recipe.data_workers
        )

    def _wait(self) -> None:
        if self._ranks > 1:
            dist.barrier()

    def _agree(self, value: bool) -> bool:  # noqa: FBT001 - rank 0's word, for all
        box = [value]
        if self._ranks > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]


def _device(recipe: PretrainRecipe) -> torch.device:
    if recipe.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
