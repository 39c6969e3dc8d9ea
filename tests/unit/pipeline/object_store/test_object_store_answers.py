"""What vouches for a body: our own metadata, an ETag where it is an MD5, nothing where it is not."""

import hashlib
import io
from datetime import UTC, datetime

import pytest
from botocore.response import StreamingBody

from pipeline.object_store.faults import ObjectTooLargeError
from pipeline.object_store.s3_answers import object_info, ranged_body, whole_body
from pipeline.object_store.s3_errors import BrokenAnswerError

BODY = b"the body"
OTHER = "0" * 32


def md5(body=BODY):
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def answer(body=BODY, **headers):
    stream = StreamingBody(io.BytesIO(body), len(body))
    return {"Body": stream, "ContentLength": len(body), "ETag": f'"{md5()}"', "Metadata": {}} | headers


def read(found, *, at_most=None, bucket="bucket"):
    return whole_body(found, where="s3://bucket/a", at_most=at_most, bucket=bucket)


def test_a_body_that_is_its_etag_passes():
    assert read(answer()) == BODY


@pytest.mark.parametrize("damaged", [b"The body", b"", b"the body "])
def test_a_body_that_is_not_its_etag_is_refused(damaged):
    with pytest.raises(BrokenAnswerError, match="MD5"):
        read(answer(damaged))


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": f'"{OTHER}-3"'},  # uploaded in parts
        {"ETag": f'"{OTHER}"', "ServerSideEncryption": "aws:kms"},
        {"ETag": f'"{OTHER}"', "ServerSideEncryption": "aws:kms:dsse"},
        {"ETag": f'"{OTHER}"', "SSECustomerAlgorithm": "AES256"},
        {"ETag": '"W/something"'},
    ],
)
def test_an_etag_that_is_no_md5_says_nothing_but_our_metadata_does(headers):
    assert read(answer(**headers)) == BODY
    assert read(answer(**headers, Metadata={"md5": md5()})) == BODY
    with pytest.raises(BrokenAnswerError, match="MD5"):
        read(answer(b"The body", **headers, Metadata={"md5": md5()}))


def test_an_express_buckets_etags_are_no_digests():
    assert read(answer(ETag=f'"{OTHER}"'), bucket="name--use1-az4--x-s3") == BODY


@pytest.mark.parametrize("missing", ["ETag", "ContentLength"])
def test_an_answer_without_what_every_answer_has_is_refused(missing):
    with pytest.raises(BrokenAnswerError, match=missing):
        read(answer(**{missing: None}))


def test_what_is_too_large_is_not_read():
    found = answer()
    with pytest.raises(ObjectTooLargeError, match="s3://bucket/a has 8 bytes, more than the 7"):
        read(found, at_most=7)
    assert read(answer(), at_most=8) == BODY


def test_another_range_than_the_one_asked_for_is_refused():
    assert ranged_body(answer(ContentRange="bytes 3-10/99"), start=3) == BODY
    for wrong in ({"ContentRange": "bytes 0-7/99"}, {"ContentRange": "bytes 33-40/99"}, {}):
        with pytest.raises(BrokenAnswerError, match="range"):
            ranged_body(answer(**wrong), start=3)


def test_a_look_needs_size_etag_and_time():
    whole = {"ContentLength": 3, "ETag": '"e"', "LastModified": datetime.fromtimestamp(5, UTC)}
    info = object_info("a", whole, size="ContentLength")
    assert (info.size, info.etag, info.modified) == (3, "e", 5.0)
    for name in whole:
        with pytest.raises(BrokenAnswerError, match=name):
            object_info(
                "a", {key: value for key, value in whole.items() if key != name}, size="ContentLength"
            )
