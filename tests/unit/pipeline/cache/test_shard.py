"""Shards: equal bytes from equal samples, readable by stock tools, and nothing but our own tar read back."""

import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from safetensors.torch import load
from unit.pipeline.cache.made_cache import commit, make_entries, make_entry, write_shard

from pipeline.cache import layout
from pipeline.cache.entry import Entry, decode_entry, decode_png, encode_entry, encode_png, split_tar
from pipeline.cache.shard import ShardWriter, upload_shard
from pipeline.object_store.opening import open_store
from pipeline.object_store.store import ObjectStore


def assert_equal_entries(one: Entry, other: Entry) -> None:
    assert (one.key, one.facts) == (other.key, other.facts)
    assert torch.equal(one.latents, other.latents)
    assert torch.equal(one.context, other.context)
    assert list(one.features) == list(other.features)
    assert all(torch.equal(one.features[block], other.features[block]) for block in one.features)
    assert np.array_equal(one.mask, other.mask)
    assert (one.image is None) == (other.image is None)
    assert one.image is None or np.array_equal(one.image, other.image)


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    entries = make_entries(6, with_image=True)
    one, other = write_shard(tmp_path / "a.tar", entries), write_shard(tmp_path / "b.tar", entries)
    assert one.path.read_bytes() == other.path.read_bytes()
    assert (one.sha256, one.size, one.spans) == (other.sha256, other.size, other.spans)
    assert one.size == one.path.stat().st_size
    # The order in which features were computed is no part of an entry.
    turned = make_entry(0)
    turned.features[6] = turned.features.pop(6)
    assert encode_entry(turned, stored_dtype="fp32") == encode_entry(make_entry(0), stored_dtype="fp32")


def test_tar_lists_sorted_keys_without_times_or_owners(tmp_path: Path) -> None:
    entries = make_entries(5)
    path = write_shard(tmp_path / "shard.tar", entries).path
    listing = subprocess.run(
        ["tar", "tvf", path, "--utc", "--numeric-owner"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert all("1970-01-01 00:00" in line for line in listing)
    names = [line.split()[-1] for line in listing]
    assert names == sorted(names)
    assert names == [f"{e.key}.{ext}" for e in entries for ext in ("json", "mask.png", "safetensors")]
    with tarfile.open(path) as tar:
        for member in tar:
            assert (member.mtime, member.uname, member.gname) == (0, "", "")
            assert (member.uid, member.gid) == (0, 0)
            assert member.isreg()


def test_stock_webdataset_reads_a_shard(tmp_path: Path) -> None:
    import webdataset

    entries = make_entries(5, with_image=True)
    path = write_shard(tmp_path / "shard.tar", entries).path
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [entry.key for entry in entries]
    for sample, entry in zip(samples, entries, strict=True):
        assert sample["json"] == entry.facts
        assert np.array_equal(sample["mask.png"][..., 0] > 0, entry.mask)
        assert np.array_equal(sample["image.png"], entry.image)
        assert torch.equal(load(sample["safetensors"])["block_8"], entry.features[8])


@pytest.mark.parametrize("with_image", [False, True])
def test_spans_lead_to_samples(with_image: bool, tmp_path: Path) -> None:
    entries = make_entries(5, with_image=with_image)
    writer = write_shard(tmp_path / "shard.tar", entries)
    data = writer.path.read_bytes()
    for span, entry in zip(writer.spans, entries, strict=True):
        stretch = data[span.offset : span.offset + span.size]
        assert xxhash.xxh3_64(stretch).hexdigest() == span.xxh3
        assert_equal_entries(decode_entry(span.key, split_tar(stretch, key=span.key)), entry)


@pytest.mark.parametrize("stored", ["fp16", "bf16", "fp32"])
def test_stored_type_is_what_comes_back(stored: str) -> None:
    entry = make_entry(3)
    files = {ext: memoryview(data) for ext, data in encode_entry(entry, stored_dtype=stored).items()}  # type: ignore[arg-type]
    back = decode_entry(entry.key, files)
    expected = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[stored]
    assert {back.latents.dtype, back.context.dtype, *(f.dtype for f in back.features.values())} == {expected}
    assert torch.equal(back.context, entry.context.to(expected))


def test_masks_and_images_survive_png() -> None:
    entry = make_entry(1, with_image=True)
    assert entry.image is not None
    assert np.array_equal(decode_png(encode_png(entry.image), mode="RGB"), entry.image)
    mask = decode_png(encode_png(entry.mask), mode="1")
    assert np.array_equal(mask, entry.mask)
    assert set(mask.view(np.uint8).ravel().tolist()) == {0, 1}  # as bytes too


def test_samples_out_of_order_are_a_fault_of_ours(tmp_path: Path) -> None:
    first, second = make_entries(2)
    with ShardWriter(tmp_path / "shard.tar") as writer:
        writer.write(second.key, encode_entry(second, stored_dtype="fp32"))
        for key in (first.key, second.key):
            with pytest.raises(AssertionError, match="key order"):
                writer.write(key, encode_entry(first, stored_dtype="fp32"))


def tar_of(
    name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, format_: int = tarfile.USTAR_FORMAT
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_) as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd" if kind in {tarfile.SYMTYPE, tarfile.LNKTYPE} else ""
        info.size = len(data) if kind == tarfile.REGTYPE else 0
        tar.addfile(info, io.BytesIO(data))
        end = tar.offset
    return buffer.getvalue()[:end]


def patched(start: int, field: bytes, *, mend_checksum: bool = True) -> bytes:
    """A sound tar of one file with a field of its header replaced."""
    data = bytearray(tar_of("k.json"))
    data[start : start + len(field)] = field
    if mend_checksum:
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


HOSTILE = {
    "symbolic link": tar_of("k.json", kind=tarfile.SYMTYPE),
    "hard link": tar_of("k.json", kind=tarfile.LNKTYPE),
    "file that names a link's target": patched(157, b"/etc/passwd"),
    "folder": tar_of("k.json", kind=tarfile.DIRTYPE),
    "device": tar_of("k.json", kind=tarfile.CHRTYPE),
    "pipe": tar_of("k.json", kind=tarfile.FIFOTYPE),
    "contiguous file": tar_of("k.json", kind=tarfile.CONTTYPE),
    "sparse file": tar_of("k.json", kind=tarfile.GNUTYPE_SPARSE, format_=tarfile.GNU_FORMAT),
    "old file": patched(156, b"\0"),
    "pax header": tar_of("k" * 300 + ".json", format_=tarfile.PAX_FORMAT),
    "global pax header": patched(156, b"g"),
    "gnu format": tar_of("k.json", format_=tarfile.GNU_FORMAT),
    "gnu long name": tar_of("k" * 300 + ".json", format_=tarfile.GNU_FORMAT),
    "gnu long link": patched(156, b"K"),
    "name in two parts": patched(345, b"../.."),
    "no tar": b"\x89PNG" + bytes(1020),
    "wrong checksum": patched(124, b"00000000002\0", mend_checksum=False),
    "less than a header": tar_of("k.json")[:511],
    "less than a block": tar_of("k.json")[:-1],
    "size beyond the end": tar_of("k.json", b"y" * 2000)[:1536],
    "size of terabytes": patched(124, b"77777777777\0"),
    "size that is no number": patched(124, b"zzzzzzzzzzz\0"),
    "size left out": patched(124, bytes(12)),
    "size with a sign": patched(124, b"+0000000001\0"),
    "size as Python writes it": patched(124, b"0o000000001\0"),
    "size with a gap": patched(124, b"0_000000001\0"),
    "negative size": patched(124, b"-0000000777\0"),
    "size in base 256": patched(124, b"\x80" + bytes(10) + b"\1"),
    "name that is no ascii": patched(0, "ü.json".encode().ljust(100, b"\0")),
    "name without a dot": tar_of("k"),
    "name of nothing": tar_of(".json"),
    "end of the archive": tar_of("k.json") + bytes(1024),
    "climbing name": tar_of("../../etc/cron.json"),
    "climbing out of the sample": tar_of("k/../../k.json"),
    "climbing extension": tar_of("k./../../etc/cron.json"),
    "absolute name": tar_of("/etc/cron.json"),
    "name with a backslash": tar_of("..\\k.json"),
    "name cut by a zero": tar_of("k.json\0.pkl"),
    "same file twice": tar_of("k.json") + tar_of("k.json", b"z"),
    "two samples": tar_of("k.json") + tar_of("l.mask.png", b"z"),
    **{
        f"a file that readers unpickle: {extension}": tar_of(f"k.{extension}")
        for extension in (
            "pkl",
            "pickle",
            "pyd",
            "pth",
            "pt",
            "npy",
            "npz",
            "ckpt",
            "PKL",
            "json.pkl",
            "cls.pyd",
        )
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_sample_of_ours_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"USTAR|no place|ends after|ends within|codec"):
        split_tar(HOSTILE[name], key="k")


def test_what_is_ours_is_read() -> None:
    assert bytes(split_tar(tar_of("k.mask.png", b"abc"), key="k")["mask.png"]) == b"abc"


def test_a_shard_is_never_overwritten(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    entries = make_entries(3)
    first = commit(store, tmp_path, entries)
    etag = store.stat(first.object_key)
    assert commit(store, tmp_path, entries) == first
    assert store.stat(first.object_key) == etag


@pytest.mark.parametrize("there", [b"something else", None], ids=["another size", "the same size"])
def test_a_damaged_object_of_that_name_is_written_anew(
    there: bytes | None, store: ObjectStore, tmp_path: Path
) -> None:
    writer = write_shard(tmp_path / "shard.tar", make_entries(2))
    sound = writer.path.read_bytes()
    name = layout.shard_key("a" * 64, "b" * 32, writer.sha256)
    store.put(name, there or sound[:-1] + b"x")
    assert upload_shard(store, writer, cache_key="a" * 64, shard_id="b" * 32) == name
    assert store.get(name) == sound


def test_facts_are_plain_json(tmp_path: Path) -> None:
    files = encode_entry(make_entry(2), stored_dtype="fp32")
    assert json.loads(files["json"])["phrase"] == "phrase 2 ünïcode"
    assert files["json"].isascii()
