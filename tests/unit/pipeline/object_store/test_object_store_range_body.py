"""Bodies of ranges, read where they belong, whatever lies beneath: all of them, or an error that is tried again."""

import base64
import io
import zlib
from typing import Any

import pytest
from botocore.exceptions import FlexibleChecksumError, IncompleteReadError
from botocore.httpchecksum import Crc32Checksum, StreamingChecksumBody
from botocore.response import StreamingBody

from pipeline.object_store.s3_errors import BrokenAnswerError
from pipeline.object_store.s3_range_body import ranged_body_into

BODY = bytes(range(200))


def answer(body: StreamingBody, *, length: int = 200, place: str = "bytes 30-229/1000") -> Any:
    return {"Body": body, "ContentLength": length, "ContentRange": place}


def buffers(*sizes: int) -> list[memoryview]:
    return [memoryview(bytearray(size)) for size in sizes]


def with_checksum(checksum: int) -> StreamingBody:
    expected = base64.b64encode(checksum.to_bytes(4, "big")).decode()
    return StreamingChecksumBody(io.BytesIO(BODY), 200, Crc32Checksum(), expected)


@pytest.mark.parametrize("checked", [False, True])
def test_a_body_that_is_no_socket_is_read_as_usual(checked: bool) -> None:
    body = with_checksum(zlib.crc32(BODY)) if checked else StreamingBody(io.BytesIO(BODY), 200)
    into = buffers(0, 3, 190, 7)
    assert ranged_body_into(answer(body), start=30, buffers=into) == 200
    assert b"".join(into) == BODY


def test_a_wrong_checksum_is_told() -> None:
    with pytest.raises(FlexibleChecksumError):
        ranged_body_into(answer(with_checksum(1)), start=30, buffers=buffers(200))


def test_an_object_that_ends_before_gives_what_there_is() -> None:
    body = StreamingBody(io.BytesIO(BODY), 200)
    into = buffers(150, 100)
    assert ranged_body_into(answer(body), start=30, buffers=into) == 200
    assert b"".join(into)[:200] == BODY


def test_a_body_cut_short_is_told() -> None:
    body = StreamingBody(io.BytesIO(BODY[:90]), 200)
    with pytest.raises(IncompleteReadError):
        ranged_body_into(answer(body), start=30, buffers=buffers(200))


@pytest.mark.parametrize("place", ["", "bytes 0-199/1000", "bytes 300-499/1000"])
def test_another_range_is_told(place: str) -> None:
    body = StreamingBody(io.BytesIO(BODY), 200)
    with pytest.raises(BrokenAnswerError, match="ignored the range"):
        ranged_body_into(answer(body, place=place), start=30, buffers=buffers(200))
