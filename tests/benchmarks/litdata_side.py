"""LitData's side of the loader benchmarks: a program for the peer's own Python, which knows nothing of this project.

    python litdata_side.py prepare SHARDS FOLDER [--raw-masks]    samples of tar shards as a LitData data set
    python litdata_side.py read FOLDER_OR_URL CACHE SAMPLES WORKERS [--raw-masks]

Samples hold what they hold in the shard: tensors, the mask as PNG, facts as JSON; with `--raw-masks` the mask is a
tensor of bytes, which makes a sample 9 % larger and leaves nothing to decode, and facts are left out. `read` answers
each line of its input with an epoch's figures, as JSON: batches of 32, stacked.
"""

import io
import json
import shutil
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import litdata
import numpy as np
import torch
from litdata.streaming import Cache, downloader
from PIL import Image
from safetensors.torch import load

BATCH = 32
CHUNK = "64MB"  # LitData's own default


def prepare(shards: Path, folder: Path, *, raw_masks: bool) -> None:
    """Write the data set."""
    folder.mkdir(parents=True)
    cache, number, files = Cache(str(folder), chunk_bytes=CHUNK), 0, {}
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is not None:
                    files[member.name.partition(".")[2]] = file.read()
                if member.name.endswith(".safetensors"):  # a sample's last file
                    cache[number] = sample_of(files, raw_masks=raw_masks)
                    number, files = number + 1, {}
    cache.done()
    cache.merge()


def sample_of(files: dict[str, bytes], *, raw_masks: bool) -> dict[str, Any]:
    """What LitData keeps of a sample."""
    tensors: dict[str, Any] = dict(load(files["safetensors"]))
    if raw_masks:
        return tensors | {"mask": torch.from_numpy(np.array(Image.open(io.BytesIO(files["mask.png"]))))}
    return tensors | {"mask": files["mask.png"], "facts": files["json"]}


def decoded(sample: dict[str, Any]) -> dict[str, Any]:
    """Mask and facts as the training takes them."""
    mask = np.asarray(Image.open(io.BytesIO(sample["mask"]))) > 0
    return sample | {
        "mask": torch.from_numpy(mask).float().unsqueeze(0),
        "facts": json.loads(bytes(sample["facts"])),
    }


def read(place: str, cache: Path, samples: int, *, workers: int, raw_masks: bool) -> None:
    """Epochs, one for each line; what an epoch has downloaded is removed before the next."""
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # its quickest client refuses http:// otherwise
    options: dict[str, Any] = {"cache_dir": str(cache)} if "://" in place else {}
    if not raw_masks:
        options["transform"] = decoded
    answer({"ready": True})
    for _ in sys.stdin:
        shutil.rmtree(cache, ignore_errors=True)
        started, cpu = time.perf_counter(), time.process_time()
        batches = litdata.StreamingDataLoader(
            litdata.StreamingDataset(place, **options), batch_size=BATCH, num_workers=workers
        )
        count = sum(len(batch["latents"]) for batch in batches)
        assert count == samples, f"{count} samples of {samples}"
        answer({"seconds": time.perf_counter() - started, "cpu_s": time.process_time() - cpu})


def answer(figures: dict[str, Any]) -> None:
    """A line for who asked."""
    print(json.dumps(figures), flush=True)  # noqa: T201 - the answer


def main() -> None:
    torch.set_num_threads(1)
    arguments = [one for one in sys.argv[1:] if one != "--raw-masks"]
    raw_masks = len(arguments) < len(sys.argv) - 1
    if arguments[0] == "prepare":
        prepare(Path(arguments[1]), Path(arguments[2]), raw_masks=raw_masks)
    else:
        place, cache, samples, workers = arguments[1:]
        read(place, Path(cache), int(samples), workers=int(workers), raw_masks=raw_masks)


if __name__ == "__main__":  # its worker processes are forked, and know what is above
    main()
