"""docs/results.md: every recorded figure with its interval, command and machine; and the page in the repository."""

import json
import shutil
from pathlib import Path

from ldznet.score_differences import Difference
from ldznet.score_results import Score
from pipeline.results.document import write_document
from pipeline.results.record import DifferenceRow, ResultRecord, ResultRow

DOCS = Path(__file__).parents[4] / "docs"


def record(name: str) -> ResultRecord:
    row = ResultRow(
        model="ldznet",
        set_name="foreign",
        phrases=321,
        parameters=9_400_000,
        miou=Score(value=0.512, low=0.48, high=0.54, threshold=0.4),
        iou_fg=Score(value=0.6),
        ap=Score(value=0.7, low=0.65, high=0.75),
        seconds_per_phrase=0.0312,
    )
    return ResultRecord(
        name=name,
        command=f"python -m jobs.results --only {name}",
        recipe_digest="ab" * 32,
        rows=(row, row.model_copy(update={"model": "noise-map", "parameters": None})),
        minutes={"scenes": 1.5, "train": 12.0},
        machine={"Processor": "two cores"},
        versions={"torch": "2"},
        date="2026-01-02",
    )


def test_every_figure_stands_with_its_interval_and_its_origin(tmp_path: Path) -> None:
    record("table").save(tmp_path / "results")
    text = write_document(tmp_path / "results").read_text()
    assert (
        "| foreign | 321 | ldznet | 9.40 M |  | 51.2 [48.0, 54.0] | 60.0 | 70.0 [65.0, 75.0] | 31 |" in text
    )
    assert "| foreign | 321 | noise-map |  |  | 51.2 [48.0, 54.0] | 60.0 | 70.0 [65.0, 75.0] | 31 |" in text
    assert "| AP | ms a phrase, from cached features |\n" in text
    assert "- command: `python -m jobs.results --only table`; scenes 1.5 min; train 12 min\n" in text
    for fact in ("ab" * 32, "Processor: two cores", "torch 2", "2026-01-02"):
        assert fact in text
    assert "Adapted to a foreign style" not in text
    assert "latent diffusion model\n" not in text


def test_plain_masks_have_no_ap(tmp_path: Path) -> None:
    one = record("adapted")
    plain = one.rows[0].model_copy(update={"model": "everything", "plain_masks": True})
    one.model_copy(update={"rows": (plain,)}).save(tmp_path / "results")
    text = write_document(tmp_path / "results").read_text()
    assert "| everything | 9.40 M |  | 51.2 [48.0, 54.0] | 60.0 |  | 31 |" in text


def test_a_summary_comes_first(tmp_path: Path) -> None:
    record("table").save(tmp_path / "results")
    (tmp_path / "results" / "summary.md").write_text("In short: good.\n")
    text = write_document(tmp_path / "results").read_text()
    assert "\n\nIn short: good.\n\n" in text
    assert text.index("In short") < text.index("## The networks")


def test_a_note_stands_above_the_figures_and_lives_as_long_as_they(tmp_path: Path) -> None:
    one = record("table").model_copy(update={"note": "The order is not the paper's."})
    one.save(tmp_path / "results")
    record("table").save(tmp_path / "results")
    text = write_document(tmp_path / "results").read_text()
    assert "\nThe order is not the paper's.\n\n| set | phrases" in text
    other = record("table")
    other.model_copy(update={"rows": other.rows[:1]}).save(tmp_path / "results")
    assert "The order" not in write_document(tmp_path / "results").read_text()


def test_seeds_of_a_system_share_a_row_set_by_set(tmp_path: Path) -> None:
    one = record("table")
    row = one.rows[0]
    cells = [
        row.model_copy(
            update={"set_name": name, "seed": seed, "train_minutes": 2.0 * seed, "miou": Score(value=value)}
        )
        for seed, value in ((1, 0.4), (2, 0.5), (3, 0.6))
        for name in ("test", "foreign")
    ]
    one.model_copy(update={"rows": (*cells, one.rows[1]), "steps": 400}).save(tmp_path / "results")
    text = write_document(tmp_path / "results").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith(("| test", "| foreign"))]
    assert [row[0] + row[2] for row in rows] == ["| testldznet", "| foreignldznet", "| foreignnoise-map"]
    assert rows[0][4] == "4.0"
    assert rows[0][5] == "50.0 [25.2, 74.8]"  # Student's t of two degrees of freedom: 4.303 * 0.1 / sqrt(3)
    assert "steps (400 of 16 phrases: short), 3 seeds" in text


ORIGIN = {
    "command": "make it",
    "minutes": {"probe": 2.5},
    "machine": {"Processor": "two cores"},
    "versions": {"torch": "2"},
    "date": "2026-01-02",
}


def test_the_latent_diffusion_model_has_its_own_table(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    record("adapted").save(folder)
    split = {"psnr_db": 21.72, "conditional": 0.1, "unconditional": 0.11, "shuffled": 0.12}
    sampler = {"name": "DDIM", "steps": 30, "guidance": 4.0}
    facts = {"scenes_a_split": 128, "sampler": sampler, "splits": {"val": split}, **ORIGIN}
    (folder / "ldm.json").write_text(json.dumps(facts))
    text = write_document(folder).read_text()
    assert "| val | 21.7 | 0.10000 | 0.11000 | 0.12000 |" in text
    assert "DDIM, 30 steps, guidance 4." in text
    assert "- command: `make it`; probe 2.5 min\n- machine: Processor: two cores\n" in text
    assert "Adapted to a foreign style" in text


def test_the_probe_is_a_picture_with_its_origin(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "probe.json").write_text(json.dumps({**ORIGIN, "recipe_digest": "cd" * 32, "note": "Block 8."}))
    text = write_document(folder).read_text()
    assert "\nBlock 8.\n\n![AP by block and timestep, and of the control](results/probe.png)\n" in text
    assert f"- recipe digest: `{'cd' * 32}`\n" in text


def test_what_moves_a_mask_is_told_block_by_block(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    blocks = [
        {"block": 4, "side": 8, "text": 0.41, "features": None},
        {"block": 6, "side": 4, "text": 0.0003, "features": 0.0021},
    ]
    facts = {"recipe_digest": "cd" * 32, "model": "builtin:one", "set_name": "test", "phrases": 12}
    (folder / "influence.json").write_text(
        json.dumps({**ORIGIN, **facts, "blocks": blocks, "note": "Little."})
    )
    text = write_document(folder).read_text()
    assert "`builtin:one` on 12 phrases of `test`" in text
    assert "\nLittle.\n\n| block |" in text
    assert "| 4 | 8 x 8 | 41.00 |  |\n| 6 | 4 x 4 | 0.03 | 0.21 |\n" in text


def test_times_are_told_for_the_steps_of_the_table(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    record("table").model_copy(update={"steps": 300}).save(folder)
    row = {"system": "znet", "cached": 20.0, "online": 10.0, "photo_milliseconds": 40.4}
    times = {**ORIGIN, "batch_size": 16, "steps": 50, "photos": 30, "rows": [row]}
    (folder / "times.json").write_text(json.dumps(times))
    text = write_document(folder).read_text()
    assert "| znet | 20.0 | 10.0 | 4.0 | 8.0 | 40 |" in text
    assert "what 300 steps of 16 take" in text and "Each training was 50 steps long" in text


def test_differences_stand_under_the_scores_with_their_signs(tmp_path: Path) -> None:
    gap = Difference(value=-0.012, low=-0.03, high=0.004)
    row = DifferenceRow(set_name="foreign", first="ldznet", second="znet", seeds=3, miou=gap, ap=gap)
    record("table").model_copy(update={"differences": (row,)}).save(tmp_path / "results")
    text = write_document(tmp_path / "results").read_text()
    assert "| foreign | ldznet | znet | -1.2 [-3.0, +0.4] | -1.2 [-3.0, +0.4] |" in text
    assert "over images (bootstrap) and seeds (Student's t)." in text


def test_the_page_is_what_the_records_give(tmp_path: Path) -> None:
    shutil.copytree(DOCS / "results", tmp_path / "results")
    assert write_document(tmp_path / "results").read_text() == (DOCS / "results.md").read_text()
