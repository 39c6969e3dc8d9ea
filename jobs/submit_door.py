"""The door of a cluster: where it is, who is let in, and what is raised where nobody answers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from ldznet.errors import UserError
from pipeline.tracking.redaction import redacted_text

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # as Ray's own commands, in this order

_FORM = "--address http://HOST:8265"


def lost_connections() -> tuple[type[Exception], ...]:
    """What is raised where the head is away."""
    import aiohttp
    import requests

    return (ConnectionError, TimeoutError, requests.exceptions.RequestException, aiohttp.ClientError)


@contextmanager
def only_address(address: str | None) -> Iterator[None]:
    """Ray would rather have the environment's address than the one that it is given."""
    if address:
        before = {name: os.environ.pop(name, None) for name in ADDRESS_VARIABLES}
        os.environ[ADDRESS_VARIABLES[0]] = address
        try:
            yield
        finally:
            del os.environ[ADDRESS_VARIABLES[0]]
            os.environ.update({name: value for name, value in before.items() if value is not None})
    else:
        yield


@contextmanager
def token_refusals(address: str | None) -> Iterator[None]:
    """A token that is refused, as one line."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise UserError(
            f"{_told(address)} refuses the token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH "
            "to the cluster's own"
        ) from error


@contextmanager
def refusals(address: str | None) -> Iterator[None]:
    """What the cluster's door says, and that nobody is there, as one line."""
    try:
        with token_refusals(address):
            yield
    except lost_connections() as error:
        raise UserError(
            f"no Ray cluster answers at {_told(address)}: is it running, and its dashboard's port forwarded to here?"
        ) from error


@contextmanager
def other_servers(address: str | None) -> Iterator[None]:
    """What answers there is no dashboard of Ray's, or nothing that can be asked."""
    from ray.exceptions import RpcError

    try:
        yield
    except (RuntimeError, ValueError, KeyError, TypeError, RpcError) as error:
        if isinstance(error, UserError):
            raise
        said = redacted_text(next(iter(str(error).splitlines()), type(error).__name__))
        raise UserError(f"no Ray dashboard answers at {_told(address)} ({said}): give {_FORM}") from error


def check_address(address: str) -> None:
    """Refuse what can be no dashboard's address before anybody is waited for.

    Raises:
        UserError: it is none.
    """
    try:
        parts = urlsplit(address)
        sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        sound = False
    if not sound:
        raise UserError(f"--address {redacted_text(address)} is no dashboard's address: give {_FORM}")


def _told(address: str | None) -> str:
    return redacted_text(address or next(filter(None, map(os.environ.get, ADDRESS_VARIABLES)), ""))
