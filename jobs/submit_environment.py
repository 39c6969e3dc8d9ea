"""Which environment variables go along with a submitted job. Ray keeps them with their values: no credentials."""

import os
import re
from collections.abc import Mapping, Sequence

from ldznet.errors import UserError
from pipeline.tracking.redaction import is_secret_key, redacted_text

# Without being asked for, where they are set: none of them is secret.
FORWARDED = ("LDZNET_LOG", "NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "HF_HUB_OFFLINE")
# What finds and opens doors is the platform's to set on every node, or Ray's own.
_NOT_OURS = ("AWS_", "MLFLOW_", "RAY_", "LD_", "PYTHON")
_SECRET_WORD = re.compile(
    r"(?:^|_)(?:KEY|PASS|PASSWD|PWD|AUTH|PAT|SAS|DSN|COOKIE|CREDS?|LOGIN|CERT)(?:_|$)", re.IGNORECASE
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_VALUE = re.compile(
    r"AKIA[0-9A-Z]{12,}|ASIA[0-9A-Z]{12,}|\b(?:hf|gh[pousr]|github_pat|glpat|dapi|sk|xox[abpr])[-_][A-Za-z0-9_-]{10,}"
    r"|-----BEGIN|\beyJ[A-Za-z0-9_-]{10,}\.|\b[0-9a-fA-F]{32,}\b"
)
_LONG_WORD = re.compile(r"[A-Za-z0-9+/_=-]{24,}")
_SHORTEST_SECRET = 8  # a shorter value is as likely a word of the text
_PLATFORM = "set it on the nodes instead, from the platform's secrets (docs/cluster.md)"


def environment_secrets(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variable -> value of the secrets that the environment holds."""
    return {
        name: value
        for name, value in environment.items()
        if _is_secret_name(name) and len(value) >= _SHORTEST_SECRET and not value.startswith("/")
    }


def forwarded_variables(asked: Sequence[str], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that a job is given: `FORWARDED` where set, and those asked for as NAME or NAME=VALUE.

    Raises:
        UserError: one is not set, is not for a submitter to set, or looks like a credential.
    """
    variables = {name: environment[name] for name in FORWARDED if environment.get(name)}
    for one in asked:
        name, given, value = one.partition("=")
        if not _NAME.fullmatch(name):
            raise UserError(f"--env {name!r}: give NAME, or NAME=VALUE")
        if not given and name not in environment:
            raise UserError(f"--env {name}: it is not set here; write {name}=VALUE")
        _refuse_name(name)
        variables[name] = value if given else environment[name]
    known = environment_secrets(environment)
    for name, value in variables.items():
        _refuse_value(name, value, known)
    return variables


def _refuse_name(name: str) -> None:
    if _is_secret_name(name):
        raise UserError(
            f"--env {name}: it looks like a credential, and Ray keeps what it is sent: {_PLATFORM}"
        )
    if name.upper().startswith(_NOT_OURS):
        raise UserError(f"--env {name}: such variables belong to the cluster: {_PLATFORM}")


def _refuse_value(name: str, value: str, known: Mapping[str, str]) -> None:
    looks = _SECRET_VALUE.search(value) or any(map(_is_random, _LONG_WORD.findall(value)))
    if looks or redacted_text(value) != value or any(secret in value for secret in known.values()):
        raise UserError(
            f"--env {name}: its value looks like a credential, and Ray keeps what it is sent: {_PLATFORM}"
        )


def _is_secret_name(name: str) -> bool:
    return is_secret_key(name) or _SECRET_WORD.search(name) is not None


def _is_random(word: str) -> bool:
    """Whether a long word mixes small and large letters and digits, as keys do and names do not."""
    return all(re.search(kind, word) for kind in ("[a-z]", "[A-Z]", "[0-9]"))
