import pytest
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    ReadTimeoutError,
)

from pipeline.object_store.retries import Retries
from pipeline.object_store.s3_errors import is_infrastructure, users_mistake, without_credentials


def answer(code, http_status):
    return ClientError(
        {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": http_status}},
        "PutObject",
    )


@pytest.mark.parametrize(
    "error",
    [
        answer("SlowDown", 503),
        answer("InternalError", 500),
        answer("ConditionalRequestConflict", 409),
        answer("TooManyRequests", 429),
        answer("BadDigest", 400),
        answer("RequestTimeout", 400),
        EndpointConnectionError(endpoint_url="http://h"),
        ReadTimeoutError(endpoint_url="http://h"),
        IncompleteReadError(actual_bytes=1, expected_bytes=2),
    ],
)
def test_what_the_infrastructure_did_is_tried_again(error):
    assert is_infrastructure(error)
    assert users_mistake(error, endpoint="http://h:1", bucket="b", key="k") is None


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (answer("NoSuchBucket", 404), "no bucket 'b' at http://h:1: make it"),
        (answer("SignatureDoesNotMatch", 403), "AWS_SECRET_ACCESS_KEY"),
        (answer("InvalidAccessKeyId", 403), "AWS_ACCESS_KEY_ID"),
        (answer("ExpiredToken", 400), "ExpiredToken"),
        (answer("AccessDenied", 403), "no permission for s3://b/k"),
        (answer("PermanentRedirect", 301), "another region"),
        (NoCredentialsError(), "no S3 credentials for http://h:1"),
    ],
)
def test_the_users_mistake_is_one_line_that_is_never_tried_again(error, named):
    assert not is_infrastructure(error)
    mistake = str(users_mistake(error, endpoint="http://name:hush@h:1/x", bucket="b", key="k"))
    assert named in mistake
    assert "\n" not in mistake
    assert "hush" not in mistake


def test_what_is_neither_stays_what_it_is():
    for error in (answer("InvalidArgument", 400), ParamValidationError(report="r")):
        assert not is_infrastructure(error)
        assert users_mistake(error, endpoint="http://h:1", bucket="b", key="k") is None


def test_an_endpoint_is_shown_without_what_may_be_secret():
    assert without_credentials("https://name:hush@host:9000/path?token=hush") == "https://host:9000"
    assert without_credentials("https://host") == "https://host"


def test_tries_are_bounded_by_number_and_by_time():
    assert list(Retries(tries=4, first_wait_s=0.001).waits()) == [0, 1, 2, 3]
    assert list(Retries(tries=100, first_wait_s=0.001, give_up_after_s=-1).waits()) == [0]
