"""No secret leaves by way of a tracker."""

from pathlib import Path

import pytest

from ldznet.errors import UserError
from pipeline.tracking.config import TrackingConfig, artifact_location, check_store, store_uri
from pipeline.tracking.redaction import is_secret_key, redacted, redacted_file, redacted_text


@pytest.mark.parametrize(
    "key",
    ["secret", "aws_secret_access_key", "hf_token", "authToken", "token", "db.password", "PASSWD", "apiKey", "api_key",
     "AWS_ACCESS_KEY_ID", "credentials", "private-key"],
)  # fmt: skip
def test_secret_keys(key: str) -> None:
    assert is_secret_key(key)


@pytest.mark.parametrize(
    "key",
    ["tokenizer", "max_tokens", "tokens", "cache_key", "key", "positional", "seed", "pass", "keep_images"],
)
def test_plain_keys(key: str) -> None:
    assert not is_secret_key(key)


def test_redacted_at_any_depth() -> None:
    recipe = {
        "store": {
            "url": "s3://me:hunter22@host/bucket",
            "secret_key": "abc",
            "empty_token": "",
            "use_token": True,
        },
        "list": [{"password": 5}, "https://u@h/x?a=1&X-Amz-Signature=ff00&b=2"],
        "tokens": 77,
    }
    assert redacted(recipe) == {
        "store": {"url": "s3://***@host/bucket", "secret_key": "***", "empty_token": "", "use_token": True},
        "list": [{"password": "***"}, "https://***@h/x?a=1&X-Amz-Signature=***&b=2"],
        "tokens": 77,
    }


@pytest.mark.parametrize(
    "text",
    ["s3://bucket/a@b/c", "models:/name@best", "me@example.org", "sqlite:////folder/mlflow.db", "a://b c@d"],
)
def test_text_without_secrets_stays(text: str) -> None:
    assert redacted_text(text) == text


def test_a_password_with_an_at_sign() -> None:
    assert redacted_text("see http://me:p@ss@host:80/x.") == "see http://***@host:80/x."


def test_secrets_of_the_environment_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse")
    monkeypatch.setenv("SHORT_TOKEN", "on")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/folder/of/the-token")
    assert (
        redacted_text("it is correct-horse, on /folder/of/the-token") == "it is ***, on /folder/of/the-token"
    )


def test_files(tmp_path: Path) -> None:
    into = tmp_path / "copies"
    into.mkdir()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text('url: s3://a:b@c/d\nhf_token: abc\n  "secret": "x y",\ntokens: 77\nempty_token: null\n')
    copy = redacted_file(recipe, into)
    assert copy == into / "recipe.yaml"
    assert copy.read_text() == (
        'url: s3://***@c/d\nhf_token: ***\n  "secret": "***",\ntokens: 77\nempty_token: null\n'
    )
    plain = tmp_path / "plain.json"
    plain.write_text('{"cache_key": "abc"}')
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"http://a:b@c \xff\xfe")
    odd = tmp_path / "odd.txt"
    odd.write_bytes(b"\xff\xfe http://a:b@c \xff")
    assert redacted_file(plain, into) == plain
    assert redacted_file(weights, into) == weights
    assert redacted_file(odd, into).read_bytes() == b"\xff\xfe http://***@c \xff"


@pytest.mark.parametrize("uri", ["./mlruns", "mlruns", "file:///folder/mlruns", "s3://bucket/x", "models:/x"])
def test_stores_that_mlflow_no_longer_takes(uri: str) -> None:
    with pytest.raises(UserError, match="no store any more"):
        check_store(uri)
    with pytest.raises(ValueError, match="no store any more"):
        TrackingConfig(uri=uri)


def test_credentials_do_not_belong_in_a_recipe() -> None:
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI in the environment"):
        TrackingConfig(uri="postgresql+psycopg2://me:hunter22@db/runs")
    assert TrackingConfig(uri="postgresql://db/runs").uri == "postgresql://db/runs"


def test_where_runs_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store_uri(TrackingConfig(), tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert store_uri(TrackingConfig(), tmp_path) == "http://server:5000"
    assert store_uri(TrackingConfig(uri="http://other"), tmp_path) == "http://other"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns")
    with pytest.raises(UserError, match="no store any more"):
        store_uri(TrackingConfig(), tmp_path)


def test_where_artifacts_go(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/mlflow.db"
    assert artifact_location(TrackingConfig(), database) == (tmp_path / "mlflow-artifacts").as_uri()
    assert artifact_location(TrackingConfig(artifacts="s3://b/runs"), database) == "s3://b/runs"
    assert artifact_location(TrackingConfig(artifacts=str(tmp_path)), "http://x") == tmp_path.as_uri()
    assert artifact_location(TrackingConfig(), "http://x") is None
