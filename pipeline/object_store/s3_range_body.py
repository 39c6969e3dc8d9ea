"""The body of a ranged GET, straight from the socket into memory that is there already.

`StreamingBody.readinto` reads into bytes of urllib3's own first and copies them. The response of `http.client`
beneath does not; where that is not what lies beneath, or a checksum came along, the body is read as usual.
"""

import http.client
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError
from botocore.response import StreamingBody

from pipeline.object_store.buffers import after
from pipeline.object_store.s3_answers import check_range, required

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef


class _Source(Protocol):
    def readinto(self, buffer: memoryview, /) -> int: ...


def ranged_body_into(answer: "GetObjectOutputTypeDef", *, start: int, buffers: Sequence[memoryview]) -> int:
    """Fill buffers with the body of a GET of a range that begins at `start`.

    Returns:
        How many bytes came: fewer than the buffers hold where the object ends before.

    Raises:
        BrokenAnswerError: it is another range, or the whole.
        IncompleteReadError, ReadTimeoutError, ResponseStreamingError: the connection broke.
    """
    body: Any = answer["Body"]
    with body as raw:
        check_range(answer, start=start)
        size = int(required(answer, "ContentLength"))
        response = _response_beneath(body, raw)
        source: _Source = body if response is None else response
        left, taken = [buffer for buffer in buffers if buffer.nbytes], 0
        while left and taken < size:
            read = _read(source, left[0][: size - taken])
            if not read:
                raise IncompleteReadError(actual_bytes=taken, expected_bytes=size)
            taken += read
            left = after(left, read)
        if response is not None and response.isclosed():  # it does that itself at the body's end
            raw.release_conn()
        elif response is None:
            body.read()  # nothing, but it checks the checksum, and lets go of the connection
    return taken


def _read(source: _Source, buffer: memoryview) -> int:
    try:
        return source.readinto(buffer)
    except TimeoutError as error:
        raise ReadTimeoutError(endpoint_url="", error=error) from error
    except (OSError, http.client.HTTPException) as error:
        raise ResponseStreamingError(error=error) from error


def _response_beneath(body: object, raw: Any) -> http.client.HTTPResponse | None:
    beneath = getattr(raw, "_fp", None)
    plain = type(body) is StreamingBody and isinstance(beneath, http.client.HTTPResponse)
    return beneath if plain else None
