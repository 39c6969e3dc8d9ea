"""Which variables go along with a submitted job: none that is, or looks like, a credential."""

import pytest

from jobs.submit_environment import environment_secrets, forwarded_variables
from ldznet.errors import UserError

HEX = "0123456789abcdef" * 4


def test_only_those_of_the_list_go_unasked() -> None:
    environment = {
        "LDZNET_LOG": "DEBUG",
        "NCCL_DEBUG": "INFO",
        "HOME": "/home/me",
        "AWS_SECRET_ACCESS_KEY": "x" * 40,
    }
    assert forwarded_variables([], environment) == {"LDZNET_LOG": "DEBUG", "NCCL_DEBUG": "INFO"}


def test_others_are_asked_for_with_their_value_or_without() -> None:
    environment = {"OMP_NUM_THREADS": "4"}
    assert forwarded_variables(["OMP_NUM_THREADS", "MODE=fast"], environment) == {
        "OMP_NUM_THREADS": "4",
        "MODE": "fast",
    }


@pytest.mark.parametrize(
    "asked",
    [
        "AWS_ACCESS_KEY_ID=x",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_PROFILE=me",
        "MLFLOW_TRACKING_PASSWORD=x",
        "MLFLOW_TRACKING_URI=http://mlflow:5000",
        "RAY_AUTH_TOKEN=x",
        "HF_TOKEN=x",
        "DB_PASS=x",
        "SIGNING_KEY=x",
        "SENTRY_DSN=x",
        "HARMLESS=hf_abcdefghijklmnop",
        "HARMLESS=AKIAABCDEFGHIJKLMNOP",
        "HARMLESS=postgresql://me:word@host/db",
        f"HARMLESS={HEX}",
        "HARMLESS=-----BEGIN PRIVATE KEY-----",
        "HARMLESS=wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
        "HARMLESS=the password is tiger-tiger",
    ],
)
def test_what_looks_like_a_credential_is_refused_and_not_repeated(asked: str) -> None:
    environment = {"AWS_SECRET_ACCESS_KEY": "abcdefgh12345678", "MY_PASSWORD": "tiger-tiger"}
    with pytest.raises(UserError, match="platform's secrets") as refused:
        forwarded_variables([asked], environment)
    name, _, value = asked.partition("=")
    assert name in str(refused.value)
    assert not value or value == "x" or value not in str(refused.value)
    assert "tiger" not in str(refused.value)


def test_a_listed_variable_with_a_secret_value_is_refused() -> None:
    with pytest.raises(UserError, match="LDZNET_LOG: its value looks like a credential"):
        forwarded_variables([], {"LDZNET_LOG": "tiger-tiger", "MY_PASSWORD": "tiger-tiger"})


@pytest.mark.parametrize(
    ("asked", "told"), [("NOT_SET", "it is not set here"), ("a b=1", "give NAME"), ("=1", "give NAME")]
)
def test_other_mistakes(asked: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        forwarded_variables([asked], {})


def test_secrets_of_the_environment_are_known_by_their_names() -> None:
    environment = {
        "AWS_SECRET_ACCESS_KEY": "abcdefgh12345678",
        "RAY_AUTH_TOKEN": HEX,
        "RAY_AUTH_TOKEN_PATH": "/home/me/token",
        "RAY_AUTH_MODE": "token",
        "PATH": "/bin:/usr/bin",
        "TOKENIZERS_PARALLELISM": "false-false",
    }
    assert set(environment_secrets(environment)) == {"AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"}
