"""Early stop: blocks 6-10 against the whole UNet pass, at SD 1.4 size with random weights, bf16, batch 4.

python -m tests.benchmarks.early_stop
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tests.benchmarks.arguments import read_arguments
from tests.benchmarks.frozen_networks import SD_1_4, TINY, counted_work, make_ldm
from tests.benchmarks.record import write_record
from tests.benchmarks.sides import ratio, spread, take_turns, timed

BLOCKS = (6, 7, 8, 9, 10)
COUNTED_SHARE = 0.9  # of the counted ratio must be reached
STOPPED, WHOLE = "stopped after block 10", "whole UNet"


def main(argv: Sequence[str] | None = None) -> None:
    arguments = read_arguments(__doc__, argv, rounds=7)
    sizes, pixels = (TINY, 64) if arguments.quick else (SD_1_4, 384)
    batch = 4
    work = counted_work(sizes, pixels=pixels, last_block=max(BLOCKS))
    counted = work.unet / work.stopped
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        if device == "cpu":
            torch.set_num_threads(len(os.sched_getaffinity(0)))
        with tempfile.TemporaryDirectory() as folder:
            ldm = make_ldm(Path(folder), sizes, dtype=torch.bfloat16, device=device, whole=False)
        noisy = torch.randn(batch, 4, pixels // 8, pixels // 8, device=device)
        context = torch.randn(batch, 77, sizes.text_width, device=device)
        steps = torch.full((batch,), 400, device=device)

        def stopped() -> None:
            ldm.block_features(noisy, steps, context, blocks=BLOCKS)  # noqa: B023 - called in this turn of the loop

        def whole() -> None:
            ldm.noise_estimate(noisy, steps, context)  # noqa: B023 - called in this turn of the loop

        sides = {STOPPED: timed(_finished(stopped, device)), WHOLE: timed(_finished(whole, device))}
        figures = take_turns(sides, rounds=arguments.rounds, warm_ups=1 if device == "cpu" else 5)
        measured = ratio(figures, WHOLE, STOPPED)
        write_record(
            name="early_stop" if device == "cpu" else "early_stop_gpu",
            value=measured / counted,
            unit="of the counted ratio",
            better="higher",
            target=COUNTED_SHARE,
            sides=figures,
            sides_unit=f"s a batch of {batch}",
            command="python -m tests.benchmarks.early_stop",
            about=(
                f"Block features 6 to 10 of {batch} latents of {pixels} px, stopping after block 10, against the whole "
                "UNet pass by the same code: SD 1.4 sizes, random weights, bf16. The value is the ratio of times over "
                "the ratio of counted operations."
            ),
            details={
                "measured ratio": round(measured, 3),
                "ratio of single rounds": spread(figures, WHOLE, STOPPED),
                "counted ratio": round(counted, 3),
                "counted GFLOP a sample": {
                    STOPPED: round(work.stopped / 1e9, 1), WHOLE: round(work.unet / 1e9, 1)
                },
            },
            threads=torch.get_num_threads() if device == "cpu" else None,
            folder=arguments.folder,
        )  # fmt: skip


def _finished(work: Callable[[], None], device: str) -> Callable[[], None]:
    """The work with all that the device still has to do."""

    def finish() -> None:
        work()
        if device == "cuda":
            torch.cuda.synchronize()

    return finish


if __name__ == "__main__":
    main()
