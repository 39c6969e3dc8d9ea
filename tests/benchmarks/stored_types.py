# ruff: noqa: T201 - a benchmark prints
"""Stored types: bytes and error of each on real photos, and the mIoU of one trained network that reads each.

python -m tests.benchmarks.stored_types [--no-training] [--no-large]
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from ldznet.frozen_ldm import FrozenLDM
from ldznet.miniature_ldm import MiniatureConfig, build_miniature_ldm
from pipeline.cache.entry import Entry
from tests.benchmarks.frozen_networks import SD_1_4, TINY, make_ldm
from tests.benchmarks.photo_entries import BLOCKS, entries_of, photo_views
from tests.benchmarks.record import FOLDER, write_record
from tests.benchmarks.stored_forms import FORMS, StoredForm, with_outliers, without_outliers
from tests.benchmarks.stored_types_miou import measure_miou

WHOLE_SAMPLE_TARGET = 0.56  # int8 of fp16's bytes at SD 1.4 sizes, 384 px
FEATURES_TARGET = 0.53
TIMESTEP = 400
Errors = dict[str, dict[int, tuple[float, float]]]  # form -> block -> relative L2 error, cosine


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _read_arguments(argv)
    size = 64 if arguments.quick else 384
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        miniature, source = _miniature_entries(Path(folder), size=size, count=2 if arguments.quick else 8)
        sets = {"miniature LDM": miniature}
        if not arguments.no_large:
            large = _large_entries(Path(folder), miniature[:2], quick=arguments.quick)
            sets |= {"SD 1.4 size": large}
    errors = {name: errors_of(entries, FORMS) for name, entries in sets.items()}
    sample = list(sets.values())[-1]
    errors["1 channel in 100 30 times as large; error of the other 99"] = errors_of(
        [with_outliers(entry) for entry in sample], FORMS, ordinary=True
    )
    for name, table in errors.items():
        _print_table(name, table)
    if not arguments.no_large:
        _write_bytes(sets["SD 1.4 size"], errors, source=source, folder=arguments.out)
    if not arguments.no_training:
        measure_miou(folder=arguments.out, quick=arguments.quick)


def _read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tiny run that shows that it works; needs --out"
    )
    parser.add_argument(
        "--no-large", action="store_true", help="without the UNet of SD 1.4's size (no record)"
    )
    parser.add_argument("--no-training", action="store_true", help="without the mIoU: no network is trained")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the records")
    given = parser.parse_args(argv)
    if given.quick and given.out.resolve() == FOLDER.resolve():
        sys.exit("--quick is no measurement: name another folder with --out")
    return given


def _miniature_entries(folder: Path, *, size: int, count: int) -> tuple[list[Entry], str]:
    views, source = photo_views(count=count, size=size)
    config = MiniatureConfig(block_out_channels=(8, 8, 16, 16)) if size < 384 else MiniatureConfig()
    built = build_miniature_ldm(folder / "ldm", config=config, phrases=[view.phrase for view in views])
    ldm = FrozenLDM.from_pretrained(built, last_block=max(BLOCKS))
    return entries_of(ldm, views, timesteps=[TIMESTEP] * len(views), batch=2), source


def _large_entries(folder: Path, miniature: Sequence[Entry], *, quick: bool) -> list[Entry]:
    """The same photos' z through a UNet of SD 1.4's size; the context is random, as the weights are."""
    sizes = TINY if quick else SD_1_4
    torch.manual_seed(0)
    (folder / "large").mkdir()
    ldm = make_ldm(folder / "large", sizes, dtype=torch.bfloat16, whole=False)
    entries = []
    for entry in miniature:
        context = torch.randn(1, 77, sizes.text_width)
        steps = torch.tensor([TIMESTEP])
        noisy = ldm.add_noise(entry.latents[None], torch.randn(1, *entry.latents.shape), steps)
        features = ldm.block_features(noisy, steps, context, blocks=BLOCKS)
        entries.append(
            Entry(
                key=entry.key,
                latents=entry.latents,
                context=context[0],
                features={block: tensor[0].float() for block, tensor in features.items()},
                mask=entry.mask,
                facts=entry.facts,
            )
        )
    return entries


def errors_of(entries: Sequence[Entry], forms: Sequence[StoredForm], *, ordinary: bool = False) -> Errors:
    """Relative error and cosine of each block in each form, the mean over entries.

    Args:
        entries: with fp32 features as computed.
        forms: to compare.
        ordinary: count only the channels that `with_outliers` left as they were.
    """
    chosen = without_outliers if ordinary else dict
    found: Errors = {}
    for form in forms:
        pairs: dict[int, list[tuple[float, float]]] = {block: [] for block in BLOCKS}
        for entry in entries:
            exact, read = chosen(entry.features), chosen(form.features(entry))
            for block in BLOCKS:
                pairs[block].append(
                    (_relative_error(exact[block], read[block]), _cosine(exact[block], read[block]))
                )
        found[form.label] = {
            block: tuple(map(mean, zip(*both, strict=True))) for block, both in pairs.items()
        }  # type: ignore[misc]
    return found


def _relative_error(exact: Tensor, read: Tensor) -> float:
    return float((read.double() - exact.double()).norm() / exact.double().norm())


def _cosine(exact: Tensor, read: Tensor) -> float:
    return float(torch.cosine_similarity(exact.double().flatten(), read.double().flatten(), dim=0))


def _print_table(name: str, table: Errors) -> None:
    print(f"\n{name}: relative L2 error (and 1 - cosine)")
    print(f"{'':12}" + "".join(f"{f'block {block}':>22}" for block in BLOCKS))
    for label, row in table.items():
        cells = (f"{error:.2e} ({1 - cosine:.1e})" for error, cosine in row.values())
        print(f"{label:12}" + "".join(f"{cell:>22}" for cell in cells))


def _write_bytes(
    entries: Sequence[Entry], errors: Mapping[str, Errors], *, source: str, folder: Path
) -> None:
    sizes = {form.label: [form.sizes(entry) for entry in entries] for form in FORMS}
    whole = {label: [float(both[0]) for both in rows] for label, rows in sizes.items()}
    features = {label: mean(both[1] for both in rows) for label, rows in sizes.items()}
    share = sum(whole["int8 / 1"]) / sum(whole["fp16"])
    write_record(
        name="stored_types",
        value=share,
        unit="of fp16's bytes, int8, whole sample",
        better="lower",
        target=WHOLE_SAMPLE_TARGET,
        sides=whole,
        sides_unit="bytes a sample",
        command="python -m tests.benchmarks.stored_types",
        about=(
            "A sample's files (tensors, mask, facts) in each stored type at SD 1.4 sizes, 384 px, a run a photo; "
            "behind the stroke: channels that share a scale. Errors: relative L2 and cosine of block features against "
            f"those computed, the mean over {source}; weights are random (no trained ones are at hand): 8 photos "
            "through the miniature in fp32, 2 of them through a UNet of SD 1.4's size in bf16."
        ),
        details={
            f"block features of fp16's bytes (target for int8: at most {FEATURES_TARGET})": {
                label: f"{size / features['fp16']:.4f}" for label, size in features.items()
            },
            **{
                f"{name}, relative error and cosine of blocks {BLOCKS[0]} to {BLOCKS[-1]}": {
                    label: [f"{error:.2e} / {cosine:.7f}" for error, cosine in row.values()]
                    for label, row in table.items()
                }
                for name, table in errors.items()
            },
        },
        folder=folder,
    )


if __name__ == "__main__":
    main()
