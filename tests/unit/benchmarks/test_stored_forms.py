"""What the benchmark of stored types compares, on random features: the order that its argument rests on."""

import numpy as np
import pytest
import torch

from pipeline.cache.entry import Entry
from tests.benchmarks.photo_entries import BLOCKS
from tests.benchmarks.stored_forms import FORMS, StoredForm, with_outliers
from tests.benchmarks.stored_types import errors_of


@pytest.fixture(scope="module")
def entry() -> Entry:
    random = torch.Generator().manual_seed(0)
    return Entry(
        key="k",
        latents=torch.randn(4, 8, 8, generator=random),
        context=torch.randn(7, 4, generator=random),
        features={block: torch.randn(200, 6, 6, generator=random) for block in BLOCKS},
        mask=np.ones((64, 64), np.bool_),
    )


def test_finer_types_are_nearer(entry: Entry) -> None:
    errors = errors_of([entry], FORMS)
    assert len(errors) == len(FORMS)
    for block in BLOCKS:
        order = [
            errors[label][block][0]
            for label in ("fp32", "fp16", "bf16", "int8 / 1", "int8 / block", "fp8 / 1")
        ]
        assert order == sorted(order)
        assert order[0] == 0 and errors["fp32"][block][1] == pytest.approx(1)


def test_outlier_channels_cost_the_others_nothing_where_each_has_its_scale(entry: Entry) -> None:
    plain, spoilt = (errors_of([one], FORMS, ordinary=True) for one in (entry, with_outliers(entry)))
    for block in BLOCKS:
        assert spoilt["int8 / 1"][block] == plain["int8 / 1"][block]
        assert spoilt["int8 / block"][block][0] > 10 * plain["int8 / block"][block][0]
        assert spoilt["fp8 / block"][block][0] < 2 * plain["fp8 / block"][block][0]


def test_sizes_are_of_files_and_of_features(entry: Entry) -> None:
    numbers = len(BLOCKS) * 200 * 36
    assert StoredForm(dtype="fp16").sizes(entry)[1] == 2 * numbers
    whole, features = StoredForm(dtype="int8", scale_group=4).sizes(entry)
    assert features == numbers + len(BLOCKS) * 50 * 2
    assert features < whole < features + 6000
