"""An output folder is one recipe's: what is finished in it is marked, and what it says of itself is true."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs import pretrain
from ldznet.errors import UserError
from pipeline.pretraining.export import export_ldm
from pipeline.pretraining.folder_checkpoints import FolderCheckpoints
from pipeline.pretraining.latent_store import FACTS, MOMENTS
from pipeline.pretraining.loop import PROGRESS
from pipeline.pretraining.output_folder import RECIPE, asked_mark, check_output, claim_output, finished_mark
from pipeline.pretraining.recipe import PretrainRecipe
from pipeline.pretraining.recipe_file import load_pretrain_recipe
from pipeline.pretraining.stage_mark import MARKS, StageMark, TrainedStage, begin_marks

CPU = Path(__file__).parents[4] / "jobs" / "recipes" / "pretrain_cpu.yaml"
STAGES: tuple[TrainedStage, ...] = ("autoencoder", "diffusion")
TINY = (
    "workers=1",
    "scenes.size=64",
    "networks.autoencoder_channels=[8,8,8,8]",
    "networks.unet_channels=[8,8,16,16]",
    "networks.unet_heads=[1,1,2,2]",
    "networks.unet_groups=4",
    "networks.context_width=16",
    "networks.text_layers=1",
    "networks.text_heads=2",
    "networks.vocabulary_size=700",
    "autoencoder.steps=2",
    "autoencoder.batch_size=2",
    "autoencoder.crop=32",
    "latents={scenes: 4, captions: 2}",
    "diffusion.steps=2",
    "diffusion.batch_size=2",
    "tokenizer_scenes=20",
    "validation_scenes=2",
    "tracking.enabled=false",
)


def recipe(output: Path, *overrides: str) -> PretrainRecipe:
    return load_pretrain_recipe(CPU, [f"output={output}", *overrides])


def finish(one: PretrainRecipe) -> None:
    """As a folder is where all stages are finished, as far as it tells so."""
    output = Path(one.output_folder)
    claim_output(one)
    for stage in STAGES:
        asked_mark(one, stage).save(output)
    add_latents(one)


def add_latents(one: PretrainRecipe) -> None:
    folder = Path(one.output_folder) / "latents"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / MOMENTS, np.zeros((one.latents.scenes, 1), np.float16))
    facts = {"identity": one.stage_identity("latents"), "rows": one.latents.scenes}
    (folder / FACTS).write_text(json.dumps(facts))


def add_checkpoint(one: PretrainRecipe, stage: TrainedStage, *, step: int) -> None:
    output = Path(one.output_folder)
    made = output / "made"
    made.mkdir(parents=True, exist_ok=True)
    (made / PROGRESS).write_text(json.dumps({"step": step, "identity": one.stage_identity(stage)}))
    FolderCheckpoints(output / "checkpoints" / stage, keep=2).save(made, step=step)


def add_weights(output: Path, stage: TrainedStage) -> None:
    """As the code before there were marks left them."""
    ldm = output / "ldm"
    parts = {"vae": "diffusion_pytorch_model"}
    if stage == "diffusion":
        parts = {"unet": "diffusion_pytorch_model", "text_encoder": "model"}
        ldm.mkdir(parents=True, exist_ok=True)
        (ldm / "model_index.json").write_text("{}")
    for part, stem in parts.items():
        (ldm / part).mkdir(parents=True)
        (ldm / part / "config.json").write_text("{}")
        save_file({"weight": torch.zeros(64)}, ldm / part / f"{stem}.safetensors")


@pytest.mark.parametrize(
    ("override", "stage"),
    [
        ("diffusion.lr=1", "diffusion"),
        ("autoencoder.lr=1", "autoencoder"),
        ("seed=1", "autoencoder"),
        ("scenes.nouns=30", "autoencoder"),
    ],
)
def test_another_recipe_is_refused_and_nothing_is_written_over(
    override: str, stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(recipe(tmp_path))
    before = (tmp_path / RECIPE).read_bytes()
    assert pretrain.main([str(CPU), f"output={tmp_path}", override, "--alone"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == (
        f"ldznet: {tmp_path} holds the {stage} of another recipe: set the recipe back, or give another output"
    )
    assert (tmp_path / RECIPE).read_bytes() == before


def test_more_steps_go_on_and_fewer_are_refused(tmp_path: Path) -> None:
    finish(recipe(tmp_path))
    longer, shorter = recipe(tmp_path, "diffusion.steps=8000"), recipe(tmp_path, "diffusion.steps=100")
    with pytest.raises(UserError, match=r"diffusion after 4000 steps, more than the 100 asked for"):
        claim_output(shorter)
    assert PretrainRecipe.model_validate_json((tmp_path / RECIPE).read_text()) == recipe(tmp_path)
    claim_output(longer)
    assert PretrainRecipe.model_validate_json((tmp_path / RECIPE).read_text()) == longer
    finished = finished_mark(tmp_path, "diffusion")
    assert finished is not None and finished.steps == 4000
    assert finished != asked_mark(longer, "diffusion")


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_of_another_recipe_or_of_more_steps_is_refused(
    stage: TrainedStage, tmp_path: Path
) -> None:
    add_checkpoint(recipe(tmp_path), stage, step=1000)
    check_output(recipe(tmp_path))
    with pytest.raises(UserError, match=f"holds the {stage} of another recipe"):
        check_output(recipe(tmp_path, f"{stage}.lr=1"))
    with pytest.raises(UserError, match=f"the {stage} after 1000 steps, more than the 900 asked for"):
        check_output(recipe(tmp_path, f"{stage}.steps=900"))


def test_an_autoencoder_that_latents_were_made_with_is_not_trained_on(tmp_path: Path) -> None:
    asked_mark(recipe(tmp_path), "autoencoder").save(tmp_path)
    check_output(recipe(tmp_path, "autoencoder.steps=3000"))
    add_latents(recipe(tmp_path))
    with pytest.raises(UserError, match="latents of another configuration"):
        check_output(recipe(tmp_path, "autoencoder.steps=3000"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_marked_stage_is_not_trained_again(stage: TrainedStage, tmp_path: Path) -> None:
    one = recipe(tmp_path)
    finish(one)
    (tmp_path / "ldm" / "tokenizer").mkdir(parents=True)
    (tmp_path / "ldm" / "tokenizer" / "tokenizer.json").write_text("{}")
    assert pretrain._pretraining(one, until=0.0, tracked=None).run_stage(stage)


def test_a_damaged_mark_is_told(tmp_path: Path) -> None:
    asked_mark(recipe(tmp_path), "diffusion").save(tmp_path)
    path = tmp_path / MARKS / "diffusion.json"
    path.write_bytes(path.read_bytes().replace(b"4000", b"8000"))
    with pytest.raises(UserError, match=r"diffusion\.json is damaged .* goes on from its checkpoint"):
        check_output(recipe(tmp_path))


@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_from_before_there_were_marks(stage: TrainedStage, tmp_path: Path) -> None:
    one = recipe(tmp_path)
    add_weights(tmp_path, stage)
    assert finished_mark(tmp_path, stage) is None  # nothing says what by
    (tmp_path / RECIPE).write_text(one.model_dump_json())
    assert finished_mark(tmp_path, stage) == asked_mark(one, stage)
    # Its recipe was written over by one of more steps that were never taken.
    (tmp_path / RECIPE).write_text(recipe(tmp_path, f"{stage}.steps=8000").model_dump_json())
    add_checkpoint(one, stage, step=500)
    assert finished_mark(tmp_path, stage) == StageMark(
        stage=stage, identity=one.stage_identity(stage), steps=500
    )
    claim_output(one)
    assert (tmp_path / MARKS / f"{stage}.json").is_file()
    other = next(each for each in STAGES if each != stage)
    assert finished_mark(tmp_path, other) is None


@pytest.mark.parametrize("stage", STAGES)
def test_weights_that_were_cut_off_are_not_a_finished_stage(stage: TrainedStage, tmp_path: Path) -> None:
    add_weights(tmp_path, stage)
    (tmp_path / RECIPE).write_text(recipe(tmp_path).model_dump_json())
    assert finished_mark(tmp_path, stage) is not None
    part = {"autoencoder": "vae", "diffusion": "unet"}[stage]
    weights = tmp_path / "ldm" / part / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert finished_mark(tmp_path, stage) is None
    weights.unlink()
    assert finished_mark(tmp_path, stage) is None


def test_with_marks_weights_alone_are_not_a_finished_stage(tmp_path: Path) -> None:
    add_weights(tmp_path, "autoencoder")
    (tmp_path / RECIPE).write_text(recipe(tmp_path).model_dump_json())
    begin_marks(tmp_path)
    assert finished_mark(tmp_path, "autoencoder") is None


def test_a_longer_recipe_is_trained_longer_and_told_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.pretraining.stages._MEASURED_SCENES", 4)
    output = tmp_path / "out"
    (output / "ldm" / "vae").mkdir(parents=True)
    (output / "ldm" / "vae" / "config.json").write_text("{}")  # diffusers writes it before the weights
    one = recipe(output, *TINY)
    assert pretrain.pretrain_here(one)
    unet = output / "ldm" / "unet" / "diffusion_pytorch_model.safetensors"
    before = load_file(unet)
    longer = recipe(output, *TINY, "diffusion.steps=3")
    assert export_ldm(longer, tmp_path / "ldm") == 2
    assert pretrain.pretrain_here(longer)
    assert any(not torch.equal(before[name], tensor) for name, tensor in load_file(unet).items())
    assert finished_mark(output, "diffusion") == asked_mark(longer, "diffusion")
    assert export_ldm(longer, tmp_path / "ldm") == 3
