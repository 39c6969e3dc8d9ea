"""The report: complete, self-contained, and true to what it was given."""

import base64
import io
import math
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldznet.scores import SegmentationScores
from pipeline.pictures import Curve
from pipeline.report.charts import curve_chart, interval_chart
from pipeline.report.content import (
    Command,
    CurveChart,
    Example,
    LdmFacts,
    NetworkScores,
    ReportContent,
    Stage,
)
from pipeline.report.machine import machine_facts, package_versions
from pipeline.report.page import duration, render_report, write_report

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Collects what a page refers to, and holds its tags to be closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "data"}]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.text += data


def scores(shift: float, *, resamples: int = 50) -> Any:
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand(6, 1, 16, 16, generator=generator) < 0.4
    logits = torch.randn(6, 1, 16, 16, generator=generator) + masks * shift - 0.5
    counted = SegmentationScores()
    counted.update(logits, masks, image_ids=list("aabbcc"))
    return counted.compute(val_threshold=0.44, resamples=resamples)


def content(**changes: Any) -> ReportContent:
    mask = np.zeros((16, 16), dtype=bool)
    mask[4:12, 4:12] = True
    half = mask.copy()
    half[:8] = False
    given: dict[str, Any] = {
        "title": "Scenes & <others>",
        "summary": "Two networks.",
        "created": datetime(2030, 5, 4, 3, 2, tzinfo=UTC),
        "ldm": LdmFacts(source="ldm-folder", digest="d1" * 32, untrained=True),
        "machine": machine_facts(),
        "versions": package_versions(),
        "caches": {"train": "ab" * 32},
        "samples": {"train": 2400},
        "stages": (
            Stage(name="Precompute", seconds=71, detail="2 workers"),
            Stage(name="Train", seconds=142),
        ),
        "scores": tuple(
            NetworkScores(network=name, data_set="scenes", split="test", scores=scores(shift))
            for name, shift in (("ZNet", 1.0), ("LD-ZNet", 3.0))
        ),
        "charts": (
            CurveChart(
                title="Loss",
                y_label="BCE",
                curves=(Curve(name="ZNet", steps=range(100), values=np.linspace(1, 0.2, 100).tolist()),),
            ),
        ),
        "examples": (
            Example(
                phrase="the <red> apple",
                image=Image.new("RGB", (64, 64), (200, 30, 30)),
                truth=mask,
                predictions={"ZNet": half, "LD-ZNet": mask},
                group="seen style",
            ),
        ),
        "quarantine": {"empty mask": 3},
        "commands": (Command(purpose="Open the runs", line="mlflow ui --backend-store-uri sqlite:////x.db"),),
        "notes": ("A note.",),
    }
    return ReportContent(**(given | changes))


def test_page_tells_everything() -> None:
    page = Page(render_report(content()))
    for told in (
        "Scenes & <others>", "the <red> apple", "seen style", "LD-ZNet", "mIoU", "IoU FG", "AP", "t = 0.44",
        "The frozen LDM is untrained", "d1" * 32, "ab" * 32, "2,400 samples", "1 min 11 s", "2 min 22 s",
        "3 min 33 s in all", "3 empty mask", "mlflow ui --backend-store-uri sqlite:////x.db", "A note.", "torch",
        "6 phrases about 3 images", "Pr@0.9", "4 May 2030",
    ):  # fmt: skip
        assert told in page.text, told


def test_page_needs_nothing_from_outside() -> None:
    html = render_report(content())
    page = Page(html)
    assert page.references
    assert all(reference.startswith("data:image/") for reference in page.references)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "@import" not in html
    assert "url(" not in html
    for encoded in re.findall(r"data:image/jpeg;base64,([^\"]+)", html):
        Image.open(io.BytesIO(base64.b64decode(encoded))).load()


def test_scores_are_shown_with_interval_and_best_marked() -> None:
    given = content()
    html = render_report(given)
    at_val = given.scores[1].scores.miou.at_val
    assert f'<span class="value">{100 * at_val.value:.1f}</span>' in html
    assert f"{100 * at_val.low:.1f} to {100 * at_val.high:.1f}" in html
    row = html[html.index("<tr><td>LD-ZNet</td>") :].partition("</tr>")[0]
    assert row.count('<td class="best') == 7


def test_ious_of_examples_are_the_masks_own() -> None:
    html = render_report(content())
    assert "<em>50</em>" in html
    assert "<em>100</em>" in html


def test_published_numbers_stand_beside_the_papers_data_set_only() -> None:
    ours = content().scores[0]
    theirs = NetworkScores(network="ZNet", data_set="phrasecut", split="test", scores=ours.scores)
    shown = Page(render_report(content(scores=(theirs,)))).text
    assert "LD-ZNet, published" in shown
    assert "52.7" in shown
    assert "published" not in Page(render_report(content())).text.replace("Published figures", "")


def test_a_report_of_little() -> None:
    bare = ReportContent(
        title="Precompute only",
        summary="No scores yet.",
        created=datetime(2030, 5, 4, tzinfo=UTC),
        ldm=LdmFacts(source="sd", digest="00", untrained=False),
    )
    page = Page(render_report(bare))
    assert "untrained" not in page.text
    assert "Scores" not in page.text.replace("Scores are in percent", "")


def test_without_intervals_or_val() -> None:
    counted = SegmentationScores()
    counted.update(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
    plain = counted.compute(resamples=0)
    page = Page(
        render_report(content(scores=(NetworkScores(network="n", data_set="d", split="s", scores=plain),)))
    )
    assert "mIoU, threshold 0.3, on d · s." in page.text


def test_written_whole_and_without_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "correct-horse-battery")
    line = "mlflow ui --backend-store-uri postgresql://me:hunter22@db/runs # correct-horse-battery"
    path = tmp_path / "run" / "report.html"
    write_report(path, content(commands=(Command(purpose="Open", line=line),)))
    page = path.read_text(encoding="utf-8")
    assert "postgresql://***@db/runs # ***" in page
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.44, "0.4 s"), (12.3, "12 s"), (59.7, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def numbers(svg: str) -> list[float]:
    return [
        float(part) for points in re.findall(r'points="([^"]*)"', svg) for part in re.split(r"[ ,]", points)
    ]


@pytest.mark.parametrize("log_scale", [False, True])
def test_curve_chart_leaves_out_what_cannot_be_drawn(log_scale: bool) -> None:
    values = [math.nan, 3.0, math.inf, 2.0, -math.inf, 1.0, 0.0]
    curve = Curve(name="<a>", steps=list(range(7)), values=values)
    svg = curve_chart(CurveChart(title="<t>", y_label="y", curves=(curve,), log_scale=log_scale))
    assert len(numbers(svg)) == 2 * (3 if log_scale else 4)
    assert all(0 <= number <= 640 for number in numbers(svg))
    assert "<t>" not in svg


def test_curve_chart_of_one_point_and_of_none() -> None:
    one = CurveChart(title="t", y_label="y", curves=(Curve(name="a", steps=[5], values=[0.0]),))
    assert "<circle" in curve_chart(one)
    assert (
        curve_chart(CurveChart(title="t", y_label="y", curves=(Curve(name="a", steps=[], values=[]),))) == ""
    )


def test_long_curves_stay_small() -> None:
    values = np.random.default_rng(0).normal(size=100_000).tolist()
    chart = CurveChart(title="t", y_label="y", curves=(Curve(name="a", steps=range(100_000), values=values),))
    assert len(curve_chart(chart)) < 30_000


def test_interval_chart_orders_dot_and_bar() -> None:
    score = scores(2.0).miou.best
    svg = interval_chart([("net", score)], label="mIoU")
    x, width = map(float, re.search(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg).groups())
    dot = float(re.search(r'<circle cx="([\d.]+)"', svg).group(1))
    assert x < dot < x + width
