"""The loader from S3 against ranged GETs of the same bytes, stock `webdataset` and LitData.

python -m tests.benchmarks.loader_s3
"""

from collections.abc import Sequence

from tests.benchmarks.arguments import Arguments, read_arguments
from tests.benchmarks.loader_throughput import (
    LITDATA,
    OURS,
    RAW,
    STOCK,
    STOCK_BATCHES,
    WHOLE,
    Throughput,
    measure,
)
from tests.benchmarks.record import write_record
from tests.benchmarks.s3_server import s3_server
from tests.benchmarks.sides import ratio
from tests.benchmarks.temporary import memory_folder

COMMAND = "python -m tests.benchmarks.loader_s3"
_ABOUT = (
    "samples of 1.57 MB (SD 1.4's shapes at 384 px, fp16) in shards of 160 on SeaweedFS (same machine, its files in "
    "memory). The loader: shuffled windows of 8, 8 requests in flight, every byte verified by xxh3, masks decoded, "
    "batches of 32 ready to train on."
)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = read_arguments(__doc__, argv, rounds=7)
    samples = 48 if arguments.quick else 1280
    with memory_folder() as folder, s3_server(folder) as bucket:
        found = measure(
            f"s3://{bucket}/cache",
            folder,
            samples=samples,
            rounds=arguments.rounds,
            with_peer=not arguments.quick,
        )
    about = f"{samples} {_ABOUT}"
    _against_raw(found, arguments, about)
    write_record(
        name="loader_s3_webdataset",
        value=found.ratio(STOCK),
        unit="x",
        better="higher",
        target=1.5,
        sides=found.sides(STOCK, STOCK_BATCHES, WHOLE),
        sides_unit="MB/s",
        command=COMMAND,
        about=(
            f"{about} Stock webdataset: a process, shards in order, each streamed by boto3's StreamingBody through a "
            "buffer of 1 MiB; tensors by safetensors.torch.load and nothing else. The same batches: masks and facts "
            "decoded as well, and stacked. Whole shards: four streams by boto3 at once, nothing looked at."
        ),
        details=found.details(STOCK)
        | {
            "ratio to the same batches": round(found.ratio(STOCK_BATCHES), 3),
            "whole shards, let go, over webdataset": round(ratio(found.speed, WHOLE, STOCK), 3),
        },
        threads=1,
        folder=arguments.folder,
    )
    if not found.peer_missing:
        write_record(
            name="loader_s3_litdata",
            value=found.ratio(LITDATA),
            unit="x",
            better="higher",
            target=1.0,
            sides=found.sides(LITDATA),
            sides_unit="MB/s",
            command=COMMAND,
            about=(
                f"{about} LitData 0.2.76: StreamingDataLoader over chunks of 64 MB, batches of 32, in order, without "
                "processes of its own (one and two were slower here), its client obstore, its download folder in "
                "memory and empty at each epoch's start; masks are tensors of bytes there. MB/s of the shards' bytes."
            ),
            details=found.details(LITDATA),
            threads=1,
            folder=arguments.folder,
        )


def _against_raw(found: Throughput, arguments: Arguments, about: str) -> None:
    about = f"{about} Ranges alone: the same ranges with as many in flight by boto3's get_object, nothing decoded."
    write_record(
        name="loader_s3",
        value=found.ratio(RAW),
        unit="of ranges alone",
        better="higher",
        target=0.8,
        sides=found.sides(RAW),
        sides_unit="MB/s",
        command=COMMAND,
        about=about,
        details=found.details(RAW),
        threads=1,
        folder=arguments.folder,
    )
    write_record(
        name="loader_s3_cpu",
        value=found.extra_cpu(),
        unit="CPU s/GB more than ranges alone",
        better="lower",
        target=0.35,
        sides={label: found.cpu[label] for label in (OURS, RAW)},
        sides_unit="CPU s/GB",
        command=COMMAND,
        about=f"{about} CPU seconds of the whole process, system time included; the server's are not.",
        details={"webdataset": round(sorted(found.cpu[STOCK])[len(found.cpu[STOCK]) // 2], 3)},
        threads=1,
        folder=arguments.folder,
    )


if __name__ == "__main__":
    main()
