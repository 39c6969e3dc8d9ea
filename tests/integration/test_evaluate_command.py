"""One command scores networks of every kind, CLIPSeg and others' masks on one cache, under both protocols."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image, ImageDraw
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPTokenizer

from jobs.cli import main
from ldznet.ldm_folder import ldm_digest
from ldznet.modeling import (
    NetworkConfig,
    build_network,
    initialise_from_ldm,
    network_from_pretrained,
    unet_config_of,
)
from ldznet.prediction_config import PredictionConfig
from pipeline.evaluation.mask_folder import file_stem
from pipeline.evaluation.scoring import run_network
from pipeline.loading.collate import collate
from pipeline.loading.loader import SampleReader
from pipeline.object_store.opening import open_store
from pipeline.recipe import Recipe
from pipeline.recipe_file import load_recipe
from pipeline.training.cached_sets import required_manifest

THRESHOLDS = np.arange(1, 50) / 50
KINDS = {
    "znet": {"kind": "znet"},
    "rgbnet": {"kind": "rgbnet"},
    "concat": {"kind": "ldznet", "fusion": "concat"},
    "ldznet": {"kind": "ldznet"},
}


@pytest.fixture(scope="module")
def data(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small data set, that a test may move away."""
    return shutil.copytree(small_data, tmp_path_factory.mktemp("data") / "boxes")


@pytest.fixture(scope="module")
def recipe_path(
    data: Path,
    miniature_ldm: Path,
    tmp_path_factory: pytest.TempPathFactory,
    precompute_here: Callable[..., None],
) -> Path:
    """A recipe whose features are computed."""
    folder = tmp_path_factory.mktemp("experiment")
    content = {
        "name": "boxes",
        "output": str(folder / "run"),
        "data": {"format": "folder", "root": str(data)},
        "ldm": {"source": str(miniature_ldm)},
        "sets": {
            "train": {"split": "train", "view": {"size": 64}},
            "val": {"split": "val", "view": {"size": 64}},
        },
        "features": {"stored_dtype": "fp32", "keep_images": True},
        "cache": {"url": str(folder / "cache"), "shard_mebibytes": 1},
        "evaluate": {"sets": ["train"], "batch_size": 8, "examples": 2, "bootstrap": 50},
        "tracking": {"enabled": False},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    precompute_here(path)
    return path


@pytest.fixture(scope="module")
def networks(miniature_ldm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An untrained network of each kind, as training leaves them."""
    root, folders = tmp_path_factory.mktemp("models"), {}
    for number, (name, options) in enumerate(KINDS.items()):
        torch.manual_seed(number)
        network = build_network(
            NetworkConfig(unet=unet_config_of(miniature_ldm), positional_latent_side=8, **options)
        )
        initialise_from_ldm(network, miniature_ldm)
        folders[name] = network.save_pretrained(root / name)
        digest = ldm_digest(miniature_ldm)
        PredictionConfig(ldm_source=str(miniature_ldm), ldm_digest=digest, size=64).save(root / name)
    return folders


@pytest.fixture(scope="module")
def clipseg(miniature_ldm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIPSeg's own layout with small random weights."""
    folder = tmp_path_factory.mktemp("clipseg") / "tiny-clipseg"
    tokenizer = CLIPTokenizer.from_pretrained(miniature_ldm / "tokenizer")
    tokens = len(tokenizer)
    text = {
        "vocab_size": tokens, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "projection_dim": 24,
        "num_attention_heads": 2, "bos_token_id": tokens - 2, "eos_token_id": tokens - 1, "pad_token_id": tokens - 1,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2,
        "image_size": 48, "patch_size": 16,
    }  # fmt: skip
    config = CLIPSegConfig(
        text_config=text, vision_config=vision, projection_dim=24, reduce_dim=16, extract_layers=[1, 2, 3],
        decoder_num_attention_heads=2, decoder_intermediate_size=32,
    )  # fmt: skip
    torch.manual_seed(5)
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    preprocessor = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
        "size": {"height": 48, "width": 48}, "resample": 2, "rescale_factor": 1 / 255,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.fixture(scope="module")
def masks(recipe_path: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two systems of others: `oracle` has the truth as PNG by label id, `soft` probabilities as NPY by key."""
    root = tmp_path_factory.mktemp("others")
    for folder in ("oracle/train", "soft/train", "soft/val"):
        (root / folder).mkdir(parents=True)
    recipe = load_recipe(recipe_path)
    random = np.random.default_rng(1)
    for set_name in ("train", "val"):
        for entry in entries_of(recipe, set_name):
            mask = original_mask(data, entry.facts)
            if set_name == "train":
                Image.fromarray(mask).save(
                    root / "oracle" / set_name / f"{file_stem(entry.facts['label_id'])}.png"
                )
            noise = random.random(mask.shape)
            np.save(
                root / "soft" / set_name / f"{entry.key}.npy", (0.6 * mask + 0.4 * noise).astype(np.float64)
            )
    return {"oracle": root / "oracle", "soft": root / "soft"}


def entries_of(recipe: Recipe, set_name: str) -> list[Any]:
    store = open_store(recipe.cache.url)
    reader = SampleReader(store=store, manifest=required_manifest(store, recipe, set_name))
    return [reader.read_run(np.array([row]))[0] for row in range(len(reader.index))]


def original_mask(data: Path, facts: dict[str, Any]) -> np.ndarray:
    with Image.open(data / facts["label_id"].split(":")[0]) as image:
        return np.asarray(image) > 0


def override(sources: list[Any]) -> str:
    return f"evaluate.models={json.dumps(sources)}"


@pytest.fixture(scope="module")
def results(
    recipe_path: Path, networks: dict[str, Path], clipseg: Path, masks: dict[str, Path]
) -> dict[tuple[str, str], dict[str, Any]]:
    """What the command wrote for all of them: (model, protocol) -> result."""
    models = [*map(str, networks.values()), str(clipseg), str(masks["oracle"]), str(masks["soft"])]
    models.append({"source": str(clipseg), "name": "clipseg on views", "pixels": "view"})
    arguments = [str(recipe_path), override(models), "evaluate.protocols=[clipseg,original]"]
    assert main(["evaluate", *arguments, "evaluate.standard_threshold=0.5"]) == 0
    output = Path(load_recipe(recipe_path).output_folder)
    content = json.loads((output / "evaluation.json").read_text())
    assert content["published"] == []
    return {(row["model"], row["protocol"]): row for row in content["results"]}


MODELS = [*KINDS, "tiny-clipseg", "clipseg on views", "oracle", "soft"]


def test_one_command_fills_one_table(results: dict, recipe_path: Path) -> None:
    assert set(results) == {(model, protocol) for model in MODELS for protocol in ("clipseg", "original")}
    kinds = {model: results[model, "clipseg"]["kind"] for model in MODELS}
    assert kinds == {
        "znet": "znet", "rgbnet": "rgbnet", "concat": "ldznet (concat)", "ldznet": "ldznet", "oracle": "masks",
        "soft": "masks", "tiny-clipseg": "clipseg", "clipseg on views": "clipseg",
    }  # fmt: skip
    for result in results.values():
        scores = result["scores"]
        assert (scores["phrases"], scores["images"], scores["resamples"]) == (36, 12, 50)
        assert scores["miou"]["at_fixed"]["threshold"] == 0.3
        assert scores["miou"]["at_val"]["chosen"] == "chosen on val"
        for score in (scores["miou"]["best"], scores["iou_fg"]["best"], scores["standard"]["overall_iou"]):
            assert score["low"] <= score["value"] <= score["high"]
    page = (Path(load_recipe(recipe_path).output_folder) / "report.html").read_text()
    for text in (*MODELS, "train, original size"):
        assert text in page


def test_others_masks_are_scored_at_their_own_size(results: dict) -> None:
    perfect = results["oracle", "original"]["scores"]["standard"]
    assert perfect["mean_iou"]["value"] == perfect["overall_iou"]["value"] == 1
    assert perfect["precision_at"]["0.9"]["value"] == 1
    squashed = results["oracle", "clipseg"]["scores"]
    assert squashed["standard"]["mean_iou"]["value"] == 1  # truth and mask go through the same pixels
    assert squashed["miou"]["at_fixed"]["value"] == squashed["miou"]["at_val"]["value"]
    # The noise lies in [0, 0.4), or [0.6, 1) on the mask: any threshold between parts them.
    soft = results["soft", "original"]["scores"]
    assert soft["standard"]["mean_iou"]["value"] == 1
    assert 0.38 <= soft["miou"]["at_val"]["threshold"] <= 0.6
    assert soft["miou"]["at_fixed"]["value"] < 0.9


@torch.no_grad()
def logits_of(name: str, entries: list[Any], networks: dict[str, Path]) -> torch.Tensor:
    network = network_from_pretrained(networks[name])
    return torch.cat([run_network(network, collate([entry], size=1, samples=1)) for entry in entries])


def naive(probabilities: list[np.ndarray], truths: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Counted a threshold at a time, as CLIPSeg does."""
    hit = np.array(
        [[np.sum((p > t) & m) for t in THRESHOLDS] for p, m in zip(probabilities, truths, strict=True)]
    )
    positive = np.array([[np.sum(p > t) for t in THRESHOLDS] for p in probabilities])
    union = np.array([m.sum() for m in truths])[:, None] + positive - hit
    at = 24  # threshold 0.5
    return {
        "miou": (hit / (1 + union)).mean(0),
        "iou_fg": hit.sum(0) / (1 + union.sum(0)),
        "mean_iou": (hit / union)[:, at].mean(),
        "overall_iou": hit[:, at].sum() / union[:, at].sum(),
        "pr": [((hit / union)[:, at] >= level).mean() for level in (0.5, 0.6, 0.7, 0.8, 0.9)],
    }


@pytest.mark.parametrize("name", KINDS)
def test_a_networks_scores_are_those_of_a_naive_count(
    name: str, results: dict, recipe_path: Path, networks: dict[str, Path], data: Path
) -> None:
    recipe = load_recipe(recipe_path)
    entries = entries_of(recipe, "train")
    logits = logits_of(name, entries, networks)
    squashed = naive([p.numpy() for p in logits.sigmoid()[:, 0]], [entry.mask for entry in entries])
    check(results[name, "clipseg"]["scores"], squashed)

    truths = [original_mask(data, entry.facts) for entry in entries]
    assert {mask.shape for mask in truths} == {(72, 96), (96, 72)}
    resized = [
        F.interpolate(one[None], size=mask.shape, mode="bilinear", align_corners=False)
        .sigmoid()[0, 0]
        .numpy()
        for one, mask in zip(logits, truths, strict=True)
    ]
    check(results[name, "original"]["scores"], naive(resized, truths))

    val = entries_of(recipe, "val")
    on_val = naive(
        [p.numpy() for p in logits_of(name, val, networks).sigmoid()[:, 0]], [one.mask for one in val]
    )
    chosen = int(
        np.argmin(np.abs(THRESHOLDS - results[name, "clipseg"]["scores"]["miou"]["at_val"]["threshold"]))
    )
    assert on_val["miou"][chosen] == pytest.approx(on_val["miou"].max(), abs=1e-3)
    assert results[name, "clipseg"]["scores"]["miou"]["at_val"]["value"] == pytest.approx(
        squashed["miou"][chosen], abs=1e-3
    )


def check(scores: dict[str, Any], expected: dict[str, Any]) -> None:
    """Batches of 8 round otherwise than batches of 1: a pixel at a threshold may change sides."""
    for figure in ("miou", "iou_fg"):
        assert scores[figure]["best"]["value"] == pytest.approx(expected[figure].max(), abs=1e-3)
        assert scores[figure]["at_fixed"]["value"] == pytest.approx(expected[figure][14], abs=1e-3)
    standard = scores["standard"]
    assert standard["threshold"] == 0.5
    assert standard["mean_iou"]["value"] == pytest.approx(expected["mean_iou"], abs=1e-3)
    assert standard["overall_iou"]["value"] == pytest.approx(expected["overall_iou"], abs=1e-3)
    assert [one["value"] for one in standard["precision_at"].values()] == pytest.approx(expected["pr"])


@torch.no_grad()
def test_clipseg_is_called_as_transformers_calls_it(
    results: dict, clipseg: Path, recipe_path: Path, data: Path
) -> None:
    from transformers import CLIPSegProcessor
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    model = CLIPSegForImageSegmentation.from_pretrained(clipseg)
    processor = CLIPSegProcessor(
        ViTImageProcessorPil.from_pretrained(clipseg), CLIPTokenizer.from_pretrained(clipseg)
    )
    entries = entries_of(load_recipe(recipe_path), "train")
    for name in ("tiny-clipseg", "clipseg on views"):
        probabilities = []
        for entry in entries:
            photo = (
                Image.open(data / entry.facts["image_id"])
                if name == "tiny-clipseg"
                else Image.fromarray(entry.image)
            )
            prompt = f"a photo of a {entry.facts['phrase']}."
            inputs = processor(text=[prompt], images=[photo], padding=True, return_tensors="pt")
            logits = model(**inputs).logits.reshape(1, 1, 48, 48)
            resized = F.interpolate(logits, size=(64, 64), mode="bilinear", align_corners=False)
            probabilities.append(resized.sigmoid()[0, 0].numpy())
        check(results[name, "clipseg"]["scores"], naive(probabilities, [entry.mask for entry in entries]))


def test_figures_table_and_report_are_in_mlflow(
    recipe_path: Path,
    networks: dict[str, Path],
    masks: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mlflow import MlflowClient

    output = recipe_path.parent / "tracked"
    models = override([str(networks["ldznet"]), str(masks["oracle"])])
    options = ["tracking.enabled=true", "tracking.system_metrics=false", f"output={output}"]
    protocols = "evaluate.protocols=[clipseg,original]"
    assert main(["evaluate", str(recipe_path), models, protocols, *options]) == 0
    table = capsys.readouterr().out
    client = MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    metrics = run.data.metrics
    assert metrics["oracle/train-original/standard_mean_iou_at_val"] == 1
    chosen = metrics["ldznet/train-original/miou_at_val_threshold"]
    assert metrics["ldznet/train-original/standard_threshold"] == chosen
    for name in ("ap", "miou_best", "miou_best_low", "miou_at_0.3", "miou_at_val", "standard_pr_0.9"):
        assert f"ldznet/train/{name}" in metrics
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"evaluation.txt", "evaluation.json", "report.html"} <= artifacts
    told = Path(client.download_artifacts(run.info.run_id, "evaluation.txt", str(tmp_path)))
    assert table.strip() == told.read_text().strip()


def test_a_set_that_is_not_scored_needs_no_features(
    recipe_path: Path, networks: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    output = recipe_path.parent / "one-set"
    more = "sets.more={split: val, view: {size: 64}, prompts: ['{}.']}"
    arguments = [str(recipe_path), override([str(networks["znet"])]), more, f"output={output}"]
    assert main(["evaluate", *arguments]) == 0
    assert "CLIPSeg's protocol" in capsys.readouterr().out
    assert "The cache holds no features of more" in (output / "report.html").read_text()


def test_the_table_is_printed_whatever_happens_to_the_report(
    recipe_path: Path, networks: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    output = recipe_path.parent / "no-report"
    (output / "report.html").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        main(["evaluate", str(recipe_path), override([str(networks["znet"])]), f"output={output}"])
    assert "CLIPSeg's protocol" in capsys.readouterr().out
    assert (output / "evaluation.json").is_file()


@pytest.mark.parametrize(
    ("models", "options", "told"),
    [
        (["nowhere"], [], "there is no folder nowhere"),
        (["data"], [], "is no model folder of this project"),
        (["bert"], [], "holds a bert, which is not scored here"),
        (["pickled-clipseg"], [], "has no model.safetensors: pickle weights are never loaded"),
        (["headless-clipseg"], [], "preprocessor_config.json cannot be read"),
        (["no/such-hub-id"], [], "CLIPSeg no/such-hub-id: no such folder"),
        (["models:/none@best"], [], "none"),
        (["znet", "znet"], [], "two are called 'znet'"),
        (["other-ldm"], [], "features of another LDM"),
        (["unsaid"], [], "has no prediction.json"),
        (["fewer-masks"], [], "has no mask for the phrase"),
        (["bad-masks"], [], "probabilities must lie in [0, 1]"),
        ([{"source": "znet", "name": "a/b"}], [], "evaluate.models.0.name"),
        ([{"source": "znet", "nmae": "a"}], [], "did you mean 'name'?"),
        (["znet"], ["evaluate.protocols=[orginal]"], "evaluate.protocols.0"),
        (["znet"], ["evaluate.sets=[tset]"], "evaluate.sets names 'tset'"),
        (["znet"], ["evaluate.standard_threshold=0.505"], "where pixels are counted"),
        (["znet"], ["features.seed=9"], "run `ldznet precompute`"),
        ([], [], "nothing to evaluate"),
    ],
)
def test_mistakes_are_told_in_one_line(  # noqa: PLR0917 - fixtures
    models: list[Any],
    options: list[str],
    told: str,
    recipe_path: Path,
    networks: dict[str, Path],
    clipseg: Path,
    masks: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    make_mistaken_systems(tmp_path, networks["znet"], clipseg, masks)
    output = ["output=elsewhere", override(models)] if models else ["output=elsewhere"]
    assert main(["evaluate", str(recipe_path), *output, *options]) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("ldznet: ")]
    assert len(lines) == 1
    assert told in lines[0]
    assert "Traceback" not in error


def make_mistaken_systems(folder: Path, znet: Path, clipseg: Path, masks: dict[str, Path]) -> None:
    (folder / "data").mkdir()
    (folder / "bert").mkdir()
    (folder / "bert" / "config.json").write_text('{"model_type": "bert"}')
    shutil.copytree(clipseg, folder / "pickled-clipseg")
    (folder / "pickled-clipseg" / "model.safetensors").rename(
        folder / "pickled-clipseg" / "pytorch_model.bin"
    )
    shutil.copytree(clipseg, folder / "headless-clipseg")
    (folder / "headless-clipseg" / "preprocessor_config.json").unlink()
    for name in ("znet", "other-ldm", "unsaid"):
        shutil.copytree(znet, folder / name)
    (folder / "unsaid" / "prediction.json").unlink()
    config = PredictionConfig.load(folder / "other-ldm").model_copy(update={"ldm_digest": "0" * 64})
    config.save(folder / "other-ldm")
    shutil.copytree(masks["oracle"], folder / "fewer-masks")
    next((folder / "fewer-masks" / "train").glob("*.png")).unlink()
    shutil.copytree(masks["soft"], folder / "bad-masks")
    for path in (folder / "bad-masks" / "train").glob("*.npy"):
        np.save(path, np.load(path) * 2)


def test_without_the_data_only_what_needs_it_is_refused(
    recipe_path: Path,
    networks: dict[str, Path],
    clipseg: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    away = data.rename(data.with_name("away"))
    try:
        arguments = [str(recipe_path), f"output={recipe_path.parent / 'away'}"]
        view = {"source": str(clipseg), "pixels": "view"}
        assert main(["evaluate", *arguments, override([str(networks["znet"]), view])]) == 0
        for models, options in (
            ([str(clipseg)], []),
            ([str(networks["znet"])], ["evaluate.protocols=[original]"]),
        ):
            capsys.readouterr()
            assert main(["evaluate", *arguments, override(models), *options]) == 2
            assert "is missing or empty" in capsys.readouterr().err
    finally:
        away.rename(data)


@pytest.mark.parametrize("changed", ["mask", "photo", "phrase"])
def test_data_that_changed_since_precompute_is_noticed(  # noqa: PLR0917 - fixtures
    changed: str, recipe_path: Path, networks: dict[str, Path], clipseg: Path, data: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path, turn = {
        "mask": (data / "masks" / "0-0.png", lambda body: (data / "masks" / "0-1.png").read_bytes()),
        "photo": (data / "images" / "0.png", lambda body: body + b"\0"),
        "phrase": (data / "phrases.jsonl", lambda body: body.replace(b"the red box", b"the old box")),
    }[changed]
    before = path.read_bytes()
    path.write_bytes(turn(before))
    try:
        model = str(clipseg) if changed == "photo" else str(networks["znet"])
        options = [] if changed == "photo" else ["evaluate.protocols=[original]"]
        output = f"output={recipe_path.parent / 'changed'}"
        assert main(["evaluate", str(recipe_path), output, override([model]), *options]) == 2
        assert "is not what the cache was computed from" in capsys.readouterr().err
    finally:
        path.write_bytes(before)


def test_crops_are_not_scored_at_original_size(
    recipe_path: Path,
    networks: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    precompute_here: Callable[..., None],
) -> None:
    options = ["sets.train.view.policy=shared", f"cache.url={tmp_path / 'cache'}", "validate_on=null"]
    precompute_here(recipe_path, *options)
    arguments = [str(recipe_path), *options, override([str(networks["znet"])]), f"output={tmp_path}"]
    assert main(["evaluate", *arguments, "evaluate.protocols=[original]"]) == 2
    assert "the set 'train' shows crops" in capsys.readouterr().err
    assert main(["evaluate", *arguments]) == 0


@pytest.mark.shared_data
def test_phrasecuts_polygons_are_scored_at_original_size(
    shared_data: Path,
    miniature_ldm: Path,
    networks: dict[str, Path],
    tmp_path: Path,
    precompute_here: Callable[..., None],
) -> None:
    """Polygons drawn here, as PhraseCut's tools draw them, are the truth that the harness scores against."""
    root = shared_data / "photos_phrasecut"
    sizes = {one["image_id"]: one for one in json.loads((root / "image_data_split3000.json").read_text())}
    (tmp_path / "drawn" / "test").mkdir(parents=True)
    for task in json.loads((root / "refer_test.json").read_text())[:6]:
        size = sizes[task["image_id"]]
        canvas = Image.new("1", (size["width"], size["height"]))
        for polygon in [polygon for instance in task["Polygons"] for polygon in instance]:
            corners = [(int(x), int(y)) for x, y in polygon]
            if len(corners) > 1:
                ImageDraw.Draw(canvas).polygon(corners, fill=1, outline=1)
        canvas.save(tmp_path / "drawn" / "test" / f"{task['task_id']}.png")
    recipe = {
        "name": "photos",
        "output": str(tmp_path / "run"),
        "data": {"format": "phrasecut", "root": str(root), "limit": 6},
        "ldm": {"source": str(miniature_ldm)},
        "sets": {name: {"split": name, "view": {"size": 64}} for name in ("val", "test")},
        "train_on": "val",
        "cache": {"url": str(tmp_path / "cache")},
        "evaluate": {"models": [str(tmp_path / "drawn"), str(networks["ldznet"])], "protocols": ["original"]},
        "tracking": {"enabled": False},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    precompute_here(path)
    assert main(["evaluate", str(path)]) == 0
    content = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    drawn, ours = (result["scores"]["standard"] for result in content["results"])
    assert drawn["mean_iou"]["value"] == drawn["overall_iou"]["value"] == 1
    assert 0 < ours["mean_iou"]["value"] < 1
    assert content["published"] == []  # PhraseCut's layout, not PhraseCut
    listed = [json.loads(line) for line in (tmp_path / "run" / "phrases-test.jsonl").read_text().splitlines()]
    assert {one["mask"] for one in listed} == {
        f"test/{path.name}" for path in (tmp_path / "drawn" / "test").iterdir()
    }
