"""Where checkpoints are kept: under a URL, complete or invisible, the newest few.

    step-00000012-1a2b3c4d.rank-00000.engine.safetensors   what each rank uploads (see `checkpoint`) ...
    step-00000012-1a2b3c4d.rank-00000.receipt.json         ... its receipt last
    step-00000012-1a2b3c4d.json                            the seal, put by rank 0 once every rank's part is there

Only a sealed checkpoint is ever read. What killed ranks left unsealed is removed by the next start.
"""

import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ldznet.config import Config
from ldznet.errors import UserError
from pipeline.held_folder import held_folder
from pipeline.object_store.store import ObjectInfo, ObjectStore
from pipeline.training import ranks
from pipeline.training.checkpoint import IncompleteCheckpointError, check_checkpoint, receipt_path
from pipeline.training.named_tensors import rank_folder

logger = logging.getLogger(__name__)

SCRATCH = "ldznet-checkpoint-"  # local folders of checkpoints on their way

_RECEIPT = "receipt.json"
_SEAL = re.compile(r"(step-(\d{8,})-[0-9a-f]{8})\.json")
_PIECE = 64 << 20  # bytes fetched at once
_FETCHES = 8  # files at a time


class Seal(Config):
    """What makes a checkpoint visible."""

    world: int


class CheckpointStore:
    """The checkpoints of one training on an object store. No other training writes there.

    Args:
        store: Of this training alone; `s3://` or a folder that all nodes see.
        keep: How many of the newest checkpoints stay.
    """

    def __init__(self, store: ObjectStore, *, keep: int) -> None:
        self._store = store
        self._keep = keep

    def location(self, name: str) -> str:
        """Where a checkpoint is, for people."""
        return f"{self._store.url}/{name}"

    def upload(self, folder: Path, name: str, *, rank: int) -> None:
        """Upload what a rank wrote in a local folder, its receipt last. Any thread may call it."""
        own = rank_folder(folder, rank)
        for path in sorted(own.iterdir()):
            self._store.put(f"{name}.{own.name}.{path.name}", path)
        self._store.put(f"{name}.{own.name}.{_RECEIPT}", receipt_path(folder, rank))

    def seal(self, name: str, *, world: int) -> None:
        """Make a checkpoint visible whose parts are all there, and remove the oldest. Rank 0 alone calls it."""
        receipts = sum(info.key.endswith(f".{_RECEIPT}") for info in self._store.list(f"{name}.rank-"))
        if receipts != world:  # a later start took it for left behind
            raise OSError(f"{self.location(name)}: {receipts} of {world} parts are there")
        self._store.put(f"{name}.json", Seal(world=world).model_dump_json().encode())
        for old in self._sealed()[: -self._keep]:
            self._drop(old)

    def newest(self) -> str | None:
        """The name of the newest sealed checkpoint."""
        names = self._sealed()
        return names[-1] if names else None

    def sweep(self) -> int:
        """Remove what is not sealed; the number of objects. Only while nobody writes."""
        sealed = set(self._sealed())
        left = [info.key for info in self._store.list("step-") if not _belongs(info.key, sealed)]
        for key in left:
            self._store.delete(key)
        self._discard_unfinished()
        if left:
            logger.info("removed %d objects of checkpoints that were never whole", len(left))
        return len(left)

    def _discard_unfinished(self) -> None:
        """Uploads in parts that were never finished are no objects: who may not list them leaves them to the bucket."""
        try:
            self._store.discard_unfinished(older_than_s=0)
        except UserError as error:
            logger.info("unfinished uploads stay until the bucket's own rule removes them: %s", error)

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """The newest sound checkpoint as a local folder with every rank's files, or None. Collective.

        It is fetched and checked once a node, by the first rank there. One that is damaged gives way to the one before.

        Raises:
            IncompleteCheckpointError: all that are there are damaged. The last one stays, for its owner to look at.
        """
        if ranks.rank() == 0:
            self.sweep()
        names = ranks.agree(self._sealed() if ranks.rank() == 0 else [])
        with ExitStack() as stack:
            folder = None
            while names and folder is None:
                folder = self._sound(names.pop(), stack, others=bool(names))
            yield folder
            if folder is not None:
                ranks.wait_for_all()  # others may read it still

    def _sound(self, name: str, stack: ExitStack, *, others: bool) -> Path | None:
        """A checkpoint's folder on this node while the stack is open; None where it is damaged, and others are left."""
        nodes = ranks.collect(_this_node())
        first = nodes.index(_this_node())
        own, problem = None, None
        if first == ranks.rank():
            own = stack.enter_context(held_folder(SCRATCH)) / name
            problem = self._fetch_whole(name, own)
        problems = [each for each in ranks.collect(problem) if each is not None]
        if not problems:
            return ranks.collect(own)[first]
        if not others:
            raise IncompleteCheckpointError(
                f"the checkpoint {self.location(problems[0])}, and there is no other: "
                f"remove {self._store.url} to train from the start"
            )
        if ranks.rank() == 0:
            logger.warning("the checkpoint %s; going back to the one before", self.location(problems[0]))
            self._drop(name)
        ranks.wait_for_all()
        return None

    def _fetch_whole(self, name: str, folder: Path) -> str | None:
        """Fetch and check; what is wrong. What was damaged on its way only is right the second time."""
        problem = None
        for _ in range(2):
            self._fetch(name, folder)
            try:
                check_checkpoint(folder)
            except IncompleteCheckpointError as error:
                problem = str(error)
                shutil.rmtree(folder, ignore_errors=True)  # of a seal without any part there is none
            else:
                return None
        return problem

    def _fetch(self, name: str, folder: Path) -> None:
        def fetch(info: ObjectInfo) -> None:
            rank, file = info.key.removeprefix(f"{name}.").split(".", maxsplit=1)
            target = folder / f"{rank}.json" if file == _RECEIPT else folder / rank / file
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as part:
                for start in range(0, info.size, _PIECE):
                    length = min(_PIECE, info.size - start)
                    part.write(self._store.get_range(info.key, start=start, length=length))

        with ThreadPoolExecutor(_FETCHES) as threads:
            for _ in threads.map(fetch, self._store.list(f"{name}.rank-")):
                pass

    def _sealed(self) -> list[str]:
        """Names, the newest last; of two with one step that which was sealed later."""
        found = []
        for info in self._store.list("step-"):
            match = _SEAL.fullmatch(info.key)
            if match:
                found.append((int(match[2]), info.modified, match[1]))
        return [name for _, _, name in sorted(found)]

    def _drop(self, name: str) -> None:
        self._store.delete(f"{name}.json")  # invisible before it is incomplete
        for info in list(self._store.list(f"{name}.")):
            self._store.delete(info.key)


def _belongs(key: str, sealed: set[str]) -> bool:
    return key.split(".", maxsplit=1)[0] in sealed


def _this_node() -> tuple[str, int, int]:
    """Equal for ranks that share a disk for temporary files."""
    place = os.stat(tempfile.gettempdir())  # noqa: PTH116 - a string from the standard library
    return (socket.gethostname(), place.st_dev, place.st_ino)
