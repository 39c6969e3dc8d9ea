"""What the online sources of one rank share: the frozen LDM, loaded once, and the sets that are listed."""

import logging
from contextlib import ExitStack
from functools import cached_property
from types import TracebackType
from typing import Self

from ldznet.errors import UserError
from ldznet.frozen_ldm import FrozenLDM
from ldznet.ldm_folder import Part, ldm_digest, resolve_ldm
from pipeline.cache.stored_type import TORCH_DTYPES
from pipeline.loading.sample_order import SampleOrder
from pipeline.object_store.store import ObjectStore
from pipeline.online.left_out import LeftOutCount
from pipeline.online.samples import OnlineSamples
from pipeline.online.source import OnlineSource
from pipeline.recipe import Recipe
from pipeline.training import ranks
from pipeline.training.cached_sets import CachedSets

logger = logging.getLogger(__name__)


class OnlineFeatures:
    """Makes online sources of a recipe's sets for this rank. Leaving it lets go of the lists."""

    def __init__(self, recipe: Recipe, *, store: ObjectStore, cached: CachedSets) -> None:
        """Nothing is listed or loaded yet; `store` is the cache, of which `cached` may name nothing."""
        self._recipe, self._store, self._cached = recipe, store, cached
        self._held = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    @cached_property
    def ldm_digest(self) -> str:
        """Of the frozen LDM, which is the same on all ranks. Collective at the first call.

        Raises:
            UserError: it is not.
        """
        source = self._recipe.ldm.source
        digest = ldm_digest(resolve_ldm(source))
        if digest != ranks.agree(digest):
            raise UserError(f"the frozen LDM {source} is not the same on every node: copy one folder to all")
        return digest

    def samples(self, set_name: str, *, fresh: bool) -> OnlineSamples:
        """List a set. Collective: rank 0 goes first, and what it learns of the photos, its node's others know."""
        digest, leads = self.ldm_digest, ranks.rank() == 0
        if not leads:
            ranks.wait_for_all()
        samples = OnlineSamples.listed(
            self._recipe, set_name, store=self._store, cached=self._cached, ldm_digest=digest, fresh=fresh
        )
        self._held.callback(samples.close)
        if leads:
            ranks.wait_for_all()
        return samples

    def training_source(self) -> tuple[OnlineSource, str]:
        """This rank's source of the set that trains, and the digest of its order. Collective."""
        recipe = self._recipe
        train = recipe.train
        samples = self.samples(recipe.train_on, fresh=train.draws == "fresh")
        order = SampleOrder(
            sizes=samples.order.sizes,
            draws=samples.order.draws,
            batch_size=train.batch_size,
            seed=train.seed,
            window=recipe.loader.window,
            remainder=recipe.loader.remainder,
        )
        source = self._source(samples, order, flip="flip" in train.augment)
        return source, samples.order.digest

    def validation_source(self, set_name: str, *, batch_size: int) -> OnlineSource:
        """This rank's source of a set whose samples are each wanted once. Collective."""
        samples = self.samples(set_name, fresh=False)
        order = SampleOrder(
            sizes=samples.order.sizes,
            draws=samples.order.draws,
            batch_size=batch_size,
            shuffle=False,
            remainder="pad",
        )
        return self._source(samples, order)

    def _source(self, samples: OnlineSamples, order: SampleOrder, *, flip: bool = False) -> OnlineSource:
        loader = self._recipe.loader
        left_out = LeftOutCount(
            set_name=samples.set_name,
            samples=order.samples_in(0),
            most_failed=self._recipe.cache.max_failed_share,
        )
        return OnlineSource(
            samples,
            ldm=lambda: self._ldm,
            order=order,
            blocks=self._blocks,
            left_out=left_out,
            rank=ranks.rank(),
            ranks=ranks.world_size(),
            flip=flip,
            threads=loader.concurrency,
            batches_ahead=loader.batches_ahead,
        )

    @property
    def _blocks(self) -> tuple[int, ...]:
        network = self._recipe.network
        return tuple(sorted(set(network.blocks))) if network.kind == "ldznet" else ()

    @cached_property
    def _ldm(self) -> FrozenLDM:
        """Those parts of it that the network needs."""
        features, blocks = self._recipe.features, self._blocks
        components: list[Part] = ["text_encoder"]
        components += ["vae"] if self._recipe.network.kind != "rgbnet" else []
        components += ["unet"] if blocks else []
        ldm = FrozenLDM.from_pretrained(
            resolve_ldm(self._recipe.ldm.source),
            device=ranks.rank_device(),
            dtype=TORCH_DTYPES[features.compute_dtype],
            last_block=max(blocks, default=1),
            components=components,
            channels_last=features.channels_last,
            compiled=features.compile,
        )
        if ranks.rank() == 0:
            logger.info("features online: %s, blocks %s", ", ".join(components), blocks or "none")
        return ldm
