"""Files that mean harm: refused with the reason, nothing fetched or run, memory bounded."""

import io
import json
import resource
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image
from unit.pipeline.cache.made_cache import SPEC, write_cache

from ldznet.errors import DataFault, UserError
from pipeline.cache import layout
from pipeline.cache.collection import preview
from pipeline.cache.inventory import describe, summarise
from pipeline.cache.lease import LEASE_PREFIX, family
from pipeline.cache.manifest import Part, read_manifest
from pipeline.cache.receipt import read_receipt
from pipeline.cache.sealed import seal
from pipeline.cache.verification import verify
from pipeline.datasets.folder import FolderDataset
from pipeline.datasets.records import json_elements, json_lines
from pipeline.datasets.safe_pickle import MAX_BYTES, load_plain_pickle
from pipeline.datasets.sample import bounded_reader, load_image
from pipeline.object_store.faults import ObjectTooLargeError
from pipeline.object_store.files import FileStore
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectInfo, ObjectStore

TEN_GB = 10**10
MB = 10**6


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    """Python's own memory, at its highest, in bytes."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak / MB:.0f} MB at the highest"


@contextmanager
def little_memory() -> Iterator[None]:
    """Whoever does not look at a size first is refused memory, instead of being killed for it."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 10**9, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class Endless:
    """A store whose every object is a beginning, then a piece over and over, to ten gigabytes; nothing is held."""

    url = "endless://store"

    def __init__(self, begin: bytes, piece: bytes) -> None:
        self._begin, self._piece, self.served = begin, piece, 0

    def stat(self, key: str) -> ObjectInfo:
        return ObjectInfo(key=key, size=TEN_GB, etag="e", modified=0.0)

    def get(self, key: str, *, at_most: int | None = None) -> bytes:
        if at_most is None:
            raise AssertionError("ten gigabytes were asked for at once")
        raise ObjectTooLargeError.of(key, size=TEN_GB, at_most=at_most)

    def get_range(self, key: str, *, start: int, length: int) -> bytes:
        self.served += length
        head = self._begin[start : start + length]
        at = max(start - len(self._begin), 0) % len(self._piece)
        want = length - len(head)
        body = self._piece * (want // len(self._piece) + 2)
        return head + body[at : at + want]


@pytest.mark.parametrize(
    ("begin", "piece", "reason"),
    [
        (b"", b"\0", "not JSON"),
        (b"[", b'{"a": ', "nested too deeply"),
        (b"", b"[", "nested too deeply"),
        (b'[{"a": "', b"x", "an element of more than"),
        (b'[{"a": ', b"9", "an element of more than"),
        pytest.param(b'[{"a": [', b"[],", "an element of more than", marks=pytest.mark.long),
        (b'[{"a": [', b'"k",', "an element of more than"),
        (b"[", b'{"":{}},1,', "a JSON object is expected"),
        (b"[", b"1,", "a JSON object is expected"),
        (b'{"a": ', b"\xff", "not UTF-8"),
        (b'{"', b"k", "an element of more than"),
    ],
)
def test_ten_gigabytes_of_json_are_refused_early(begin: bytes, piece: bytes, reason: str) -> None:
    store = Endless(begin, piece)
    with memory_below(450 * MB), pytest.raises(UserError, match=reason):
        list(json_elements(store, "a.json"))
    assert store.served < 20 * 2**20


def test_ten_gigabytes_of_sound_json_are_streamed() -> None:
    element = json.dumps({"image_id": 1, "Polygons": [[[1, 2]] * 20]}).encode()
    with memory_below(60 * MB):
        found = json_elements(Endless(b"[", element + b","), "a.json")
        assert sum(1 for _ in islice(found, 20_000)) == 20_000
    with memory_below(60 * MB):
        found = json_elements(Endless(b'{"numbers": [1], "things": [', b"{},"), "a.json")
        assert sum(1 for _ in islice(found, 20_000)) == 20_000


@pytest.mark.parametrize(
    ("begin", "piece", "reason"),
    [
        (b"", b"\0", "a line of more than"),
        (b"{}\n", b"x", "a line of more than"),
        (b"", b'{"a":', "a line of more than"),
        (b"", b"[]\n", "a JSON object is expected"),
        (b'{"a":' * 3000 + b"\n", b"{}\n", "nested too deeply|not JSON"),
    ],
)
def test_ten_gigabytes_of_json_lines_are_refused_early(begin: bytes, piece: bytes, reason: str) -> None:
    store = Endless(begin, piece)
    with memory_below(100 * MB), pytest.raises(UserError, match=reason):
        list(json_lines(store, "a.jsonl"))
    assert store.served < 20 * 2**20


def test_ten_gigabytes_of_sound_lines_are_streamed() -> None:
    with memory_below(600 * MB):  # four megabytes of the shortest lines there are, as objects
        found = json_lines(Endless(b"", b"{}\n"), "a.jsonl")
        assert sum(1 for _ in islice(found, 20_000)) == 20_000


def test_a_sparse_file_of_ten_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    for name in ("phrases.jsonl", "images"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(TEN_GB)
    store = FileStore(root=tmp_path)
    with memory_below(50 * MB):
        with pytest.raises(UserError, match="a line of more than"):
            list(FolderDataset(store=store).samples("train"))
        with pytest.raises(DataFault, match="images has 10000000000 bytes"):
            bounded_reader(store)("images")


FOREIGN_KEYS = [
    "pipe:cat /etc/passwd",
    "pipe:curl evil.example",
    "file:/etc/passwd",
    "file:///etc/passwd",
    "http://169.254.169.254/latest/meta-data/",
    "https://169.254.169.254/a.png",
    "s3://other-bucket/a.png",
    "/etc/passwd",
    "../outside.png",
    "images/../../outside.png",
    "images//a.png",
    "C:/a.png",
    "a\\..\\b.png",
    "a\0.png",
    "a\n.png",
]


class NoNetwork:
    """A folder store that tells which keys it was asked for."""

    def __init__(self, store: ObjectStore) -> None:
        self._store, self.asked = store, list[str]()

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def get(self, key: str, *, at_most: int | None = None) -> bytes:
        self.asked.append(key)
        return self._store.get(key, at_most=at_most)


@pytest.mark.parametrize("key", FOREIGN_KEYS)
@pytest.mark.parametrize("field", ["image", "mask"])
def test_a_url_or_a_path_out_of_the_folder_is_no_image(tmp_path: Path, field: str, key: str) -> None:
    record = {"image": "images/a.png", "mask": "masks/a.png", "phrase": "a", field: key}
    (tmp_path / "phrases.jsonl").write_text(json.dumps(record) + "\n")
    store = NoNetwork(FileStore(root=tmp_path))
    with pytest.raises(UserError, match=f'"{field}" must be a plain path inside the data folder'):
        list(FolderDataset(store=store).samples("all"))
    assert store.asked == []


@pytest.mark.parametrize("key", FOREIGN_KEYS)
def test_a_manifest_or_receipt_that_names_something_foreign_is_not_followed(tmp_path: Path, key: str) -> None:
    store = NoNetwork(open_store(tmp_path / "store"))
    manifest = write_cache(store, tmp_path, samples=4, per_shard=2)
    shard = manifest.shards[0]
    receipt = read_receipt(store, cache_key=SPEC.key, shard_id=shard.shard_id)
    assert receipt is not None
    place = layout.manifest_key(manifest.cache_key, manifest.manifest_id)
    hostile = {
        "shards": (shard.model_copy(update={"object_key": key}), *manifest.shards[1:]),
        "index": Part(key=key, sha256="0" * 64),
        "left_out": Part(key=key, sha256="0" * 64),
        "column_indexes": (Part(key=key, sha256="0" * 64),),
    }
    for name, value in hostile.items():
        store.put(place, seal(manifest.model_copy(update={name: value})))
        store.asked.clear()
        with pytest.raises(UserError, match=r"no part of a cache|not a manifest|outside"):
            read_manifest(store, cache_key=manifest.cache_key, manifest_id=manifest.manifest_id)
        assert store.asked == [place]
    receipt_place = layout.receipt_key(SPEC.key, shard.shard_id)
    store.put(receipt_place, seal(receipt.model_copy(update={"object_key": key})))
    store.asked.clear()
    with pytest.raises((UserError, OSError), match=r"no shard|damaged"):
        read_receipt(store, cache_key=SPEC.key, shard_id=shard.shard_id)
    assert store.asked == [receipt_place]


@pytest.mark.parametrize("what", ["manifest", "receipt", "index"])
def test_a_manifest_or_receipt_of_ten_gigabytes_is_not_read(tmp_path: Path, what: str) -> None:
    store = FileStore(root=tmp_path / "store")
    manifest = write_cache(store, tmp_path, samples=4, per_shard=2)
    shard_id = manifest.shards[0].shard_id
    place = {
        "manifest": layout.manifest_key(manifest.cache_key, manifest.manifest_id),
        "receipt": layout.receipt_key(SPEC.key, shard_id),
        "index": manifest.index.key,
    }[what]
    with store.path(place).open("wb") as file:
        file.truncate(TEN_GB)

    def read() -> object:
        from pipeline.cache.manifest import read_index

        if what == "manifest":
            return read_manifest(store, cache_key=manifest.cache_key, manifest_id=manifest.manifest_id)
        if what == "index":
            return read_index(store, manifest)
        return read_receipt(store, cache_key=SPEC.key, shard_id=shard_id)

    with (
        little_memory(),
        memory_below(50 * MB),
        pytest.raises((UserError, OSError), match="10000000000 bytes"),
    ):
        read()


def test_upkeep_of_a_cache_with_documents_of_ten_gigabytes(tmp_path: Path) -> None:
    store = FileStore(root=tmp_path / "store")
    manifest = write_cache(store, tmp_path, samples=4, per_shard=2)
    request = layout.request_key("ab" * 16)
    shard_list = layout.shard_list_key(manifest.cache_key, manifest.manifest_id)
    lease = f"{LEASE_PREFIX}{family(SPEC)}/0123456789abcdef.json"
    for key in (request, shard_list, lease):
        store.path(key).parent.mkdir(parents=True, exist_ok=True)
        with store.path(key).open("wb") as file:
            file.truncate(TEN_GB)
    with little_memory(), memory_below(50 * MB):
        assert {(fault.what, fault.object_key) for fault in verify(store).faults} == {
            ("damaged", request),
            ("damaged", shard_list),
        }
        assert summarise(store).specs[0].samples == 4
        with pytest.raises(UserError, match="is damaged: remove it"):
            describe(store, manifest.cache_key)
        assert SPEC.key in preview(store, older_than_s=0.0).leased


@pytest.mark.parametrize(
    "body",
    [
        b"\x80\x04]" + b"\x94" * (MAX_BYTES // 8),  # one list, remembered over and over
        b"\x80\x04" + b"]" * (MAX_BYTES // 8),
        b"\x80\x04" + b"(" * (MAX_BYTES // 8),
        b"\x80\x04]" + b"2" * (MAX_BYTES // 8),
    ],
)
def test_a_pickle_made_to_fill_memory_is_refused(body: bytes) -> None:
    with pytest.raises(UserError, match=r"too many|too deeply|too large"):
        load_plain_pickle(body, place="refs.p")


def test_what_is_no_file_is_no_object(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "fine").write_bytes(b"1")
    store = FileStore(root=tmp_path)
    for key in ("pipe", "zeros"):
        assert store.stat(key) is None
        with pytest.raises(KeyError):
            store.get(key)
        with pytest.raises(KeyError):
            store.get_range(key, start=0, length=1)
    assert [info.key for info in store.list()] == ["fine"]


def _png(width: int, height: int, *, bits: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _png_with_profile() -> bytes:
    """A small image with a colour profile of half a gigabyte."""
    packer = zlib.compressobj(9)
    profile = b"p\0\0" + b"".join(packer.compress(bytes(2**20)) for _ in range(512)) + packer.flush()
    image = _png(8, 8, data=zlib.compress(bytes(8 * 25)))
    before, header, after = image[:8], image[8:33], image[33:]
    chunk = struct.pack(">I", len(profile)) + b"iCCP" + profile
    return before + header + chunk + struct.pack(">I", zlib.crc32(b"iCCP" + profile)) + after


def _filled_png(side: int, *, bits: int, colour: int, channels: int) -> bytes:
    """A real file of zeros, compressed a thousandfold."""
    packer = zlib.compressobj(9)
    row = bytes(1 + side * channels * bits // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    return _png(side, side, bits=bits, colour=colour, data=data)


def _webp(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "WEBP", lossless=True, quality=0, method=0)
    return buffer.getvalue()


LARGEST = 8192
BOMBS: dict[str, tuple[Callable[[], bytes], bool, int]] = {  # the file, whether it is read, megabytes at most
    "a header of gigapixels": (lambda: _png(60_000, 60_000, data=zlib.compress(bytes(1000))), False, 100),
    "just over the limit": (lambda: _filled_png(LARGEST + 1, bits=8, colour=2, channels=3), False, 100),
    "webp over the limit": (lambda: _webp(LARGEST + 1), False, 700),
    "a profile that expands": (_png_with_profile, False, 100),
    "16 bits at the limit": (lambda: _filled_png(LARGEST, bits=16, colour=0, channels=1), True, 700),
    "transparency at the limit": (lambda: _filled_png(LARGEST, bits=8, colour=6, channels=4), True, 800),
    "16 bits and transparency": (lambda: _filled_png(LARGEST, bits=16, colour=6, channels=4), True, 800),
}

_DECODE = """
import re, sys
from pathlib import Path
from ldznet.errors import DataFault
from ldznet.images import decode_image, decode_mask
data = Path(sys.argv[1]).read_bytes()
def highest():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = highest()
for read in (decode_image, decode_mask):
    try:
        read(data)
        print("read")
    except DataFault as fault:
        print("refused", fault)
print((highest() - before) // 1000)
"""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] if name.startswith("16 bits and") else [])
        for name in BOMBS
    ],
)
def test_an_image_that_expands_is_refused_or_bounded(tmp_path: Path, name: str) -> None:
    make, is_read, most = BOMBS[name]
    path = tmp_path / "bomb"
    path.write_bytes(make())
    assert path.stat().st_size < 5 * MB
    done = subprocess.run(
        [sys.executable, "-c", _DECODE, path], capture_output=True, text=True, check=True, timeout=300
    )
    *said, megabytes = done.stdout.splitlines()
    sys.stdout.write(f"{name}: {said} with {megabytes} MB\n")
    assert {line.split()[0] for line in said} == {"read" if is_read else "refused"}
    assert int(megabytes) < most


def test_a_bomb_in_a_data_set_is_a_fault_of_that_sample(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_png(60_000, 60_000))
    record = {"image": "a.png", "mask": "a.png", "phrase": "a"}
    (tmp_path / "phrases.jsonl").write_text(json.dumps(record) + "\n")
    store = FileStore(root=tmp_path)
    (sample,) = FolderDataset(store=store).samples("all")
    with pytest.raises(DataFault, match=r"image a.png: .*(bomb|pixels)"):
        load_image(sample, bounded_reader(store))
    with pytest.raises(DataFault, match=r"mask a.png: .*(bomb|pixels)"):
        sample.mask.decode(bounded_reader(store), width=60_000, height=60_000)
