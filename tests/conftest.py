"""What tests of several parts share: a real S3 server, stores on it and in a folder, the shared photos."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import settings

from ldznet.errors import UserError
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore
from pipeline.services.seaweedfs import SeaweedFS, weed_program

# A slow machine is no failure, and the examples found stay out of the checkout.
settings.register_profile("tests", deadline=None, database=None)
settings.load_profile("tests")


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """A running SeaweedFS whose address and credentials are in the environment of the tests."""
    try:
        weed_program()
    except UserError as error:
        pytest.skip(str(error))
    server = SeaweedFS(folder=tmp_path_factory.mktemp("seaweedfs"), bucket="tests")
    with server, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def s3_url(seaweedfs: SeaweedFS) -> str:
    """A place of its own in the test bucket."""
    return f"s3://{seaweedfs.bucket}/{uuid4().hex}"


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store: in a folder, then on SeaweedFS."""
    if request.param == "file":
        return open_store(tmp_path / "objects")
    return open_store(request.getfixturevalue("s3_url"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the shared photos, which lies beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared photos beside the checkout (../shared/data)")
    return folder
