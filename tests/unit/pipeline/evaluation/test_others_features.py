"""Features of another photo, whatever photos a batch has: a control that gave a sample its own would be none."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldznet.errors import UserError
from pipeline.evaluation.others_features import OthersFeatures
from pipeline.loading.batch import Batch


def batch_of(photos: list[str], *, padding: int = 0, side: int = 1) -> Batch:
    """A batch whose features and scales tell which photo they are of."""
    named = [*photos, *[photos[-1]] * padding]
    size = len(named)
    values = torch.tensor([float(ord(photo)) for photo in named])
    return Batch(
        keys=tuple(f"{number}" for number in range(size)),
        latents=torch.zeros(size, 4, 8, 8),
        context=torch.zeros(size, 7, 12),
        features={
            8: values[:, None, None, None].expand(size, 3, side, side),
            12: -values[:, None, None, None],
        },
        scales={8: values[:, None]},
        masks=torch.zeros(size, 1, 64, 64, dtype=torch.bool),
        weight=torch.tensor([1.0] * len(photos) + [0.0] * padding),
        facts=tuple({"image_digest": photo, "image_id": photo} for photo in named),
    )


def photos_of(batch: Batch) -> list[str]:
    return [chr(int(value)) for value in batch.features[8][:, 0, 0, 0]]


@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.integers(0, 3)), min_size=1
    )
)
def test_no_sample_ever_gets_features_of_its_own_photo(batches: list[tuple[list[str], int]]) -> None:
    others, seen = OthersFeatures(), set[str]()
    for photos, padding in batches:
        batch = batch_of(photos, padding=padding)
        seen |= set(photos)
        if len(seen) == 1:
            with pytest.raises(UserError, match=r"raise evaluate\.batch_size"):
                others.exchanged(batch)
            return
        given_others = others.exchanged(batch)
        taken = photos_of(given_others)[: len(photos)]
        assert all(one != own for one, own in zip(taken, photos, strict=True))
        assert torch.equal(given_others.features[12][:, 0, 0, 0], -given_others.features[8][:, 0, 0, 0])
        assert torch.equal(given_others.scales[8][:, 0], given_others.features[8][:, 0, 0, 0])
        assert torch.equal(given_others.latents, batch.latents)


def test_of_a_whole_batch_of_photos_each_serves_once() -> None:
    photos = list("abcdefgh")
    assert sorted(photos_of(OthersFeatures().exchanged(batch_of(photos)))) == photos


def test_a_set_of_another_size_begins_anew() -> None:
    others = OthersFeatures()
    others.exchanged(batch_of(list("ab")))
    assert photos_of(others.exchanged(batch_of(list("cd"), side=2))) == list("dc")
    with pytest.raises(UserError, match="no other photo came before"):
        others.exchanged(batch_of(list("e"), side=3))
