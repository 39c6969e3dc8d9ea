"""The loader from local disk against stock `webdataset` and LitData; ranges alone for information.

python -m tests.benchmarks.loader_disk
"""

from collections.abc import Sequence

from tests.benchmarks.arguments import read_arguments
from tests.benchmarks.loader_throughput import LITDATA, RAW, STOCK, STOCK_BATCHES, measure
from tests.benchmarks.record import write_record
from tests.benchmarks.temporary import memory_folder

COMMAND = "python -m tests.benchmarks.loader_disk"


def main(argv: Sequence[str] | None = None) -> None:
    arguments = read_arguments(__doc__, argv, rounds=9)
    samples = 48 if arguments.quick else 640
    with memory_folder() as folder:
        found = measure(
            (folder / "cache").as_uri(),
            folder,
            samples=samples,
            rounds=arguments.rounds,
            with_peer=not arguments.quick,
        )
    about = (
        f"{samples} samples of 1.57 MB (SD 1.4's shapes at 384 px, fp16) in shards of 160, files in memory. The "
        "loader: shuffled windows of 8 by 8 threads, every byte verified by xxh3, masks decoded, batches of 32 ready "
        "to train on."
    )
    write_record(
        name="loader_disk_webdataset",
        value=found.ratio(STOCK),
        unit="x",
        better="higher",
        target=2.0,
        sides=found.sides(STOCK, STOCK_BATCHES, RAW),
        sides_unit="MB/s",
        command=COMMAND,
        about=(
            f"{about} Stock webdataset: a process, shards in order; tensors by safetensors.torch.load and nothing "
            "else. The same batches: masks and facts decoded as well, and stacked. Ranges alone: pread, nothing "
            "decoded."
        ),
        details=found.details(STOCK)
        | {
            "ratio to the same batches": round(found.ratio(STOCK_BATCHES), 3),
            "ratio to ranges alone": round(found.ratio(RAW), 3),
            "CPU seconds a GB more than ranges alone": round(found.extra_cpu(), 3),
        },
        threads=1,
        folder=arguments.folder,
    )
    if not found.peer_missing:
        write_record(
            name="loader_disk_litdata",
            value=found.ratio(LITDATA),
            unit="x",
            better="higher",
            target=1.0,
            sides=found.sides(LITDATA),
            sides_unit="MB/s",
            command=COMMAND,
            about=(
                f"{about} LitData 0.2.76: StreamingDataLoader over chunks of 64 MB, batches of 32, in order, nothing "
                "verified; masks are tensors of bytes there, with nothing to decode. MB/s of the shards' bytes."
            ),
            details=found.details(LITDATA),
            threads=1,
            folder=arguments.folder,
        )


if __name__ == "__main__":
    main()
