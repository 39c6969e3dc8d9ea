"""Cached latents: rows in order, gone on with where a run stopped; batches that are pure functions of their step."""

import numpy as np
import pytest
import torch

from ldznet.errors import UserError
from pipeline.pretraining.autoencoder_batches import images_tensor
from pipeline.pretraining.latent_store import (
    LatentBatches,
    LatentStore,
    fill_latents,
    read_latents,
    rows_done,
)
from pipeline.pretraining.scene_stream import SceneStream, compose_batch
from pipeline.scenes.config import ScenesConfig

SCENES = ScenesConfig(size=64, nouns=24, min_objects=1, max_objects=2, min_scale=0.4)
STREAM = SceneStream(config=SCENES, split="train", captions=2)


def encode(images):
    """Means of 8x8 pixels as the mean, a constant as the deviation."""
    means = torch.nn.functional.avg_pool2d(images, 8)  # B,3,h,w
    mean = torch.cat([means, means[:, :1]], dim=1)
    return torch.cat([mean, torch.full_like(mean, 0.25)], dim=1)


def tokenize(prompts):
    return torch.tensor([[len(prompt)] * 77 for prompt in prompts])


def fill(folder, *, scenes=20, identity="x", go_on=lambda _: True):
    return fill_latents(
        folder,
        stream=STREAM,
        scenes=scenes,
        batch_size=8,
        encode=encode,
        tokenize=tokenize,
        identity=identity,
        go_on=go_on,
    )


def test_rows_are_the_scenes_latents_and_tokens(tmp_path):
    store = fill(tmp_path / "latents")
    batch = compose_batch(SCENES, split="train", numbers=range(20), captions=2)
    expected = encode(images_tensor(batch.images)).half().numpy()
    assert store.moments.shape == (20, 8, 8, 8)
    assert np.array_equal(store.moments, expected)
    assert store.tokens[:, :, 0].tolist() == [[len(text) for text in each] for each in batch.captions]


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.pretraining.latent_store._ROWS_A_FLUSH", 8)
    whole = fill(tmp_path / "whole")
    assert fill(tmp_path / "parts", go_on=lambda done: done < 9) is None
    composed = []
    parts = fill(tmp_path / "parts", go_on=lambda done: composed.append(done) or True)
    assert composed[0] == 16  # the first sixteen were kept
    assert np.array_equal(parts.moments, whole.moments)
    assert np.array_equal(parts.tokens, whole.tokens)
    composed.clear()
    fill(tmp_path / "parts", go_on=lambda done: composed.append(done) or True)
    assert composed == []


def test_a_run_that_is_told_to_stop_keeps_what_it_did(tmp_path):
    assert fill(tmp_path / "latents", go_on=lambda done: done < 9) is None
    assert (
        rows_done(tmp_path / "latents", identity="x", scenes=20) == 16
    )  # far fewer than are flushed at once


def test_arrays_without_a_finished_row_are_begun_anew(tmp_path):
    assert fill(tmp_path / "latents", go_on=lambda _: False) is None
    assert fill(tmp_path / "latents", scenes=24).moments.shape[0] == 24


def test_rows_of_something_else_are_not_gone_on_with(tmp_path):
    fill(tmp_path / "latents")
    with pytest.raises(UserError, match="another configuration"):
        fill(tmp_path / "latents", identity="y")
    with pytest.raises(UserError, match="another number of scenes"):
        fill(tmp_path / "latents", scenes=24)


def batches(store, **changes):
    chosen = {"seed": 3, "batch_size": 6, "full_captions": 0.5, "drop_caption": 0.3, "rank": 0, "ranks": 1}
    blank = torch.full((77,), -1)
    return LatentBatches(store=store, scaling_factor=2.0, blank=blank, **(chosen | changes))


@pytest.fixture(scope="module")
def store():
    random = np.random.default_rng(0)
    moments = random.normal(size=(50, 8, 8, 8)).astype(np.float16)
    moments[:, 4:] = 0
    moments[:, 0, 0, 0] = np.arange(50)  # tells rows apart
    tokens = np.repeat(np.arange(150).reshape(50, 3, 1), 77, axis=2).astype(np.int32)
    return LatentStore(moments=moments, tokens=tokens)


def take(source, count, *, step=0):
    stream = source.from_step(step)
    return [next(stream) for _ in range(count)]


def test_a_step_is_the_same_wherever_a_run_began(store):
    run = take(batches(store), 12)
    later = take(batches(store), 4, step=8)
    for one, other in zip(run[8:], later, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(run[0]["noise"], run[1]["noise"])


def test_an_epoch_takes_every_row_once_in_an_order_of_its_own(store):
    rows = torch.cat([each["latents"][:, 0, 0, 0] / 2 for each in take(batches(store, batch_size=10), 10)])
    first, second = rows[:50].round().int().tolist(), rows[50:].round().int().tolist()
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second != list(range(50))


def test_ranks_share_a_batch(store):
    whole = take(batches(store), 3)
    shares = [take(batches(store, rank=rank, ranks=2), 3) for rank in range(2)]
    for number, batch in enumerate(whole):
        for name, tensor in batch.items():
            assert torch.equal(tensor[0::2], shares[0][number][name])
            assert torch.equal(tensor[1::2], shares[1][number][name])


def test_captions_are_dropped_and_chosen_as_often_as_told(store):
    drawn = torch.cat([each["tokens"][:, 0] for each in take(batches(store), 400)])
    kept = drawn[drawn >= 0]
    assert 0.25 < float((drawn < 0).float().mean()) < 0.35
    assert 0.45 < float((kept % 3 == 0).float().mean()) < 0.55  # the whole caption
    assert set((kept % 3).tolist()) == {0, 1, 2}


def test_tokens_belong_to_their_latents(store):
    for batch in take(batches(store, drop_caption=0.0), 5):
        rows = (batch["latents"][:, 0, 0, 0] / 2).round().long()
        assert torch.equal(batch["tokens"][:, 0] // 3, rows)


def test_the_posterior_is_sampled(store):
    wide = LatentStore(moments=store.moments.copy(), tokens=store.tokens)
    wide.moments[:, :4], wide.moments[:, 4:] = 0, 3
    latents = torch.cat([each["latents"] for each in take(batches(wide), 20)])
    assert 5.8 < float(latents.std()) < 6.2  # deviation 3, scaled by 2


def test_finished_arrays_are_read_without_loading_them(tmp_path):
    fill(tmp_path / "latents")
    assert isinstance(read_latents(tmp_path / "latents").moments, np.memmap)
