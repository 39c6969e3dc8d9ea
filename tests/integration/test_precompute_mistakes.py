"""What goes wrong at `ldznet precompute` beyond a recipe: the store, and faulty data above its share."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from PIL import Image

from jobs.local_ray import ray_session
from jobs.precompute import main
from pipeline.object_store.opening import open_store


@pytest.fixture(scope="module")
def ray_here(seaweedfs: Any) -> Iterator[None]:
    with ray_session(cpus=2):
        yield


@pytest.fixture
def one_line(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs precompute, which must refuse; gives its one line."""

    def run(*arguments: object) -> str:
        capfd.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("ldznet: ")]
        assert len(lines) == 1
        return lines[0]

    return run


@pytest.fixture
def faulty(small_data: Path, tmp_path: Path) -> Path:
    """A copy of the data with one image that cannot be read, one empty mask and one empty phrase."""
    folder = Path(shutil.copytree(small_data, tmp_path / "faulty"))
    (folder / "images/3.png").write_bytes(b"no image")
    Image.new("L", (96, 72)).save(folder / "masks/5-1.png")
    with (folder / "phrases.jsonl").open("a") as file:
        line = {"image": "images/1.png", "mask": "masks/1-0.png", "phrase": " ", "split": "train"}
        file.write(json.dumps(line) + "\n")
    return folder


def test_wrong_credentials(
    seaweedfs: Any,
    one_line: Callable[..., str],
    small_recipe: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secret = "not-the-secret-" + uuid4().hex
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    line = one_line(small_recipe(), f"cache.url=s3://{seaweedfs.bucket}/x")
    assert f"{seaweedfs.endpoint} refused the S3 credentials (SignatureDoesNotMatch): check" in line
    assert secret not in line


def test_no_credentials(
    seaweedfs: Any,
    one_line: Callable[..., str],
    small_recipe: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    assert "no S3 credentials" in one_line(small_recipe(), f"cache.url=s3://{seaweedfs.bucket}/x")


def test_a_bucket_that_is_not_there(
    seaweedfs: Any, one_line: Callable[..., str], small_recipe: Callable[..., Path]
) -> None:
    line = one_line(small_recipe(), "cache.url=s3://no-such-bucket/x")
    assert f"no bucket 'no-such-bucket' at {seaweedfs.endpoint}: make it" in line


def test_a_data_set_on_a_bucket_that_is_not_there(
    seaweedfs: Any, one_line: Callable[..., str], small_recipe: Callable[..., Path]
) -> None:
    assert "no bucket 'no-such-data'" in one_line(small_recipe(), "data.root=s3://no-such-data/photos")


def test_nobody_at_the_address(
    seaweedfs: Any,
    one_line: Callable[..., str],
    small_recipe: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    line = one_line(small_recipe(), f"cache.url=s3://{seaweedfs.bucket}/x")
    assert "no object store answers at http://127.0.0.1:1: start it, or correct AWS_ENDPOINT_URL" in line


def test_faulty_samples_are_counted_and_told(
    ray_here: None,
    faulty: Path,
    small_recipe: Callable[..., Path],
    s3_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    arguments = [str(small_recipe()), f"data.root={faulty}", f"cache.url={s3_url}", "sets.train.draws=1"]
    assert main([*arguments, "cache.max_failed_share=0.2"]) == 0
    text = caplog.text
    assert "5 samples failed" in text
    assert text.count("left out: images/3.png, phrase") == 3
    assert "left out: images/3.png, phrase 'the red box': not an image file" in text
    assert "left out: images/5.png, phrase 'a green box on the left': the mask is empty" in text
    assert "left out: images/1.png, phrase ' ': the phrase is empty" in text


def test_too_many_faulty_samples_are_refused(
    ray_here: None,
    faulty: Path,
    small_recipe: Callable[..., Path],
    s3_url: str,
    one_line: Callable[..., str],
) -> None:
    arguments = (small_recipe(), f"data.root={faulty}", f"cache.url={s3_url}", "sets.train.draws=1")
    line = one_line(*arguments, "cache.max_failed_share=0.1")
    assert (
        "samples of the set 'train' are faulty, more than cache.max_failed_share=0.1 allows; the first: "
        in line
    )
    # Refused means that no reader finds it, whatever was computed until then.
    assert not [info.key for info in open_store(s3_url).list() if info.key.startswith("requests/")]
    # It stays refused when all shards are there.
    assert "max_failed_share=0.1 allows" in one_line(*arguments, "cache.max_failed_share=0.1")
