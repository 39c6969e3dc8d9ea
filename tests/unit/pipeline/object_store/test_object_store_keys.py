import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldznet.errors import UserError
from pipeline.object_store.files import FileStore
from pipeline.object_store.key import LONGEST_KEY, check_key, check_prefix

BAD = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../b",
    "a/./b",
    "a\0b",
    "a\nb",
    "a\x7f",
    "\ud800",
    "ü" * 600,
]

PART = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=40
)
KEY = st.lists(PART.filter(lambda part: part not in {".", ".."}), min_size=1, max_size=4).map("/".join)


@pytest.mark.parametrize("key", BAD)
def test_a_bad_key_is_refused_in_one_printable_line(key):
    with pytest.raises(UserError) as refusal:
        check_key(key)
    assert str(refusal.value).isprintable()


def test_a_key_may_be_as_long_as_s3_allows():
    assert check_key("k" * LONGEST_KEY)
    with pytest.raises(UserError, match="shorten"):
        check_key("k" * (LONGEST_KEY + 1))


@pytest.mark.parametrize("prefix", ["/", "/a", "a//b", "a//", "../", "a/../b"])
def test_a_bad_prefix_is_refused(prefix):
    with pytest.raises(UserError):
        check_prefix(prefix)


@pytest.mark.parametrize("prefix", ["", "a", "a/", "a/b", "a/..b"])
def test_a_prefix_may_end_anywhere(prefix):
    assert check_prefix(prefix) == prefix


@pytest.mark.parametrize("key", [key for key in BAD if key])
def test_no_call_of_a_file_store_leaves_its_folder(tmp_path, key):
    outside = tmp_path / "a"
    outside.write_bytes(b"outside")
    store = FileStore(root=tmp_path / "store" / "deep")
    calls = [
        lambda: store.get(key),
        lambda: store.get_range(key, start=0, length=1),
        lambda: store.get_range_into(key, start=0, buffers=[memoryview(bytearray(1))]),
        lambda: store.put(key, b"x"),
        lambda: store.create(key, b"x"),
        lambda: store.replace(key, b"x", etag="e"),
        lambda: store.stat(key),
        lambda: store.delete(key),
    ]
    for call in calls:
        with pytest.raises(UserError):
            call()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [outside]
    assert outside.read_bytes() == b"outside"


@settings(max_examples=40)
@given(bodies=st.dictionaries(KEY, st.binary(max_size=64), max_size=6), prefix=KEY)
def test_a_file_store_gives_back_what_any_keys_were_given(bodies, prefix):
    with tempfile.TemporaryDirectory() as folder:
        store = FileStore(root=Path(folder) / "store")
        kept: dict[str, bytes] = {}
        for key, body in bodies.items():
            clashes = any(key.startswith(f"{other}/") or other.startswith(f"{key}/") for other in kept)
            if clashes or max(len(part.encode()) for part in key.split("/")) > 255:
                with pytest.raises(UserError):
                    store.create(key, body)
            else:
                assert store.create(key, body)
                assert not store.create(key, b"other")
                kept[key] = body
        assert {key: store.get(key) for key in kept} == kept
        assert [info.key for info in store.list()] == sorted(kept)
        assert [info.key for info in store.list(prefix)] == sorted(
            key for key in kept if key.startswith(prefix)
        )
        for key, body in kept.items():
            assert store.get_range(key, start=0, length=len(body)) == body
            store.delete(key)
        assert list(store.list()) == []
