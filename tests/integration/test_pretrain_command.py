"""`ldznet pretrain`, tiny: stopped and gone on with, alone and on Ray; its model is a frozen LDM like any other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from jobs import cli, pretrain
from ldznet.frozen_ldm import FrozenLDM
from pipeline.object_store.opening import open_store
from pipeline.pretraining.export import export_ldm
from pipeline.pretraining.recipe import PretrainRecipe
from pipeline.pretraining.recipe_file import load_pretrain_recipe
from pipeline.pretraining.show import Sampler, show_pretrained
from pipeline.tracking.client import open_client, sqlite_uri

pytestmark = [pytest.mark.slow, pytest.mark.long]  # `make test-cluster`


def write_recipe(folder: Path, **changes: Any) -> Path:
    stage = {"steps": 6, "batch_size": 4, "warmup_steps": 2, "checkpoint_every": 3, "log_every": 2}
    content = {
        "name": "tiny",
        "output": str(folder / "out"),
        "device": "cpu",
        "scenes": {
            "size": 64,
            "nouns": 24,
            "held_out_nouns": 8,
            "min_objects": 1,
            "max_objects": 2,
            "min_scale": 0.4,
        },
        "networks": {
            "autoencoder_channels": [8, 8, 8, 8],
            "unet_channels": [8, 8, 16, 16],
            "unet_heads": [1, 1, 2, 2],
            "unet_groups": 4,
            "context_width": 16,
            "text_layers": 1,
            "text_heads": 2,
            "vocabulary_size": 700,
        },
        "autoencoder": {**stage, "crop": 32, "validate_every": 6},
        "latents": {"scenes": 24, "captions": 2, "batch_size": 8},
        "diffusion": {**stage, "validate_every": 6},
        "tokenizer_scenes": 200,
        "validation_scenes": 4,
        "tracking": {"enabled": False},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> PretrainRecipe:
    path = write_recipe(tmp_path_factory.mktemp("pretrained"))
    assert cli.main(["pretrain", str(path), "--alone"]) == 0
    return load_pretrain_recipe(path)


def ldm_of(recipe: PretrainRecipe) -> Path:
    return Path(recipe.output_folder) / "ldm"


def weights(ldm: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.parent.name}/{name}": tensor
        for path in sorted(ldm.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def test_it_leaves_a_model_curves_and_its_recipe(pretrained: PretrainRecipe) -> None:
    output = Path(pretrained.output_folder)
    assert PretrainRecipe.model_validate_json((output / "recipe.json").read_text()) == pretrained
    for stage, figure in (("autoencoder", "psnr_db"), ("diffusion", "conditional")):
        lines = [json.loads(line) for line in (output / "curves" / f"{stage}.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if line["kind"] == "train"] == [2, 4, 6]
        assert figure in next(line for line in lines if line["kind"] == "validation")


def test_latents_have_unit_deviation(pretrained: PretrainRecipe) -> None:
    from pipeline.pretraining.figures import scene_images

    ldm = FrozenLDM.from_pretrained(ldm_of(pretrained))
    images = scene_images(pretrained.scenes, split="train", count=64)
    noise = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float(ldm.encode_images(images, noise=noise).std()) == pytest.approx(1, abs=0.1)


def test_a_run_in_pieces_ends_with_the_same_bits(pretrained: PretrainRecipe, tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    calls = 0
    while not (tmp_path / "out/ldm/model_index.json").is_file():
        assert pretrain.main([str(path), "--alone", "--minutes", "0.02"]) == 0
        calls += 1
        assert calls < 40
    assert calls > 1
    whole, pieces = weights(ldm_of(pretrained)), weights(tmp_path / "out/ldm")
    assert whole.keys() == pieces.keys()
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


def test_running_it_again_trains_nothing(pretrained: PretrainRecipe) -> None:
    before = {path: path.stat().st_mtime_ns for path in ldm_of(pretrained).rglob("*") if path.is_file()}
    assert pretrain.pretrain_here(pretrained)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_export_is_the_same_model_in_half_the_bytes(pretrained: PretrainRecipe, tmp_path: Path) -> None:
    assert export_ldm(pretrained, tmp_path / "ldm") == 6
    whole, half = weights(ldm_of(pretrained)), weights(tmp_path / "ldm")
    assert whole.keys() == half.keys()
    for name, tensor in whole.items():
        assert half[name].dtype == (torch.float16 if tensor.is_floating_point() else tensor.dtype)
        torch.testing.assert_close(half[name].to(tensor.dtype), tensor, rtol=1e-3, atol=1e-6)
    for config in (tmp_path / "ldm").rglob("*.json"):
        assert str(tmp_path.parent) not in config.read_text()
        assert "_name_or_path" not in config.read_text()


def test_an_unfinished_model_is_exported_from_its_checkpoint(
    pretrained: PretrainRecipe, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    path = write_recipe(tmp_path)
    recipe = load_pretrain_recipe(path, ["autoencoder.steps=2"])
    assert pretrain.main([str(path), "--alone", "autoencoder.steps=2", "diffusion.steps=3"]) == 0
    for part in ("unet", "text_encoder", "scheduler"):
        for file in (output / "ldm" / part).iterdir():
            file.unlink()
    (output / "ldm/model_index.json").unlink()
    (output / "finished/diffusion.json").unlink()
    assert export_ldm(recipe, tmp_path / "ldm") == 3
    assert FrozenLDM.from_pretrained(tmp_path / "ldm").context_width == 16


def test_it_shows_samples_reconstructions_and_figures(pretrained: PretrainRecipe) -> None:
    folder = show_pretrained(pretrained, sampler=Sampler(steps=2), scenes=4)
    figures = json.loads((folder / "figures.json").read_text())
    assert set(figures["splits"]) == {"val", "held_out", "foreign"}
    assert set(figures["splits"]["val"]) == {"psnr_db", "l1", "conditional", "unconditional", "shuffled"}
    assert (folder / "samples.png").stat().st_size > 10_000
    assert (folder / "reconstructions.png").stat().st_size > 10_000
    for stage in ("autoencoder", "diffusion"):
        assert (folder / f"curves-{stage}.png").read_bytes().startswith(b"\x89PNG")


def test_the_pipeline_takes_it_like_any_ldm(
    pretrained: PretrainRecipe,
    small_recipe: Callable[..., Path],
    precompute_here: Callable[..., None],
    tmp_path: Path,
) -> None:
    export_ldm(pretrained, tmp_path / "ldm")
    path = small_recipe(ldm={"source": str(tmp_path / "ldm")})
    precompute_here(path)
    store = open_store(str(tmp_path / "cache"))
    assert any("/shards/" in info.key for info in store.list())


def test_two_ranks_on_ray_train_the_same_model_and_tell_mlflow(tmp_path: Path) -> None:
    path = write_recipe(
        tmp_path, workers=2, tracking={"uri": sqlite_uri(tmp_path / "mlflow.db"), "experiment": "tests"}
    )
    alone = write_recipe_for_one_rank(tmp_path)
    assert pretrain.main([str(path)]) == 0
    assert pretrain.main([str(alone), "--alone"]) == 0
    two, one = weights(tmp_path / "out/ldm"), weights(tmp_path / "alone/out/ldm")
    for name in ("unet/conv_in.weight", "vae/encoder.conv_in.weight"):
        torch.testing.assert_close(
            two[name], one[name], rtol=0, atol=2e-4
        )  # ranks add gradients in another order
    client = open_client(sqlite_uri(tmp_path / "mlflow.db"))
    experiment = client.get_experiment_by_name("tests")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["diffusion.steps"] == "6"
    history = client.get_metric_history(run.info.run_id, "diffusion/train/loss")
    assert [point.step for point in history] == [2, 4, 6]


def write_recipe_for_one_rank(folder: Path) -> Path:
    (folder / "alone").mkdir()
    return write_recipe(folder / "alone")
