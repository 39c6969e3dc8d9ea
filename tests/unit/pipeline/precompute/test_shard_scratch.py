"""The scratch folder of a shard in the making, and the file in it."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from pipeline.precompute.scratch import Scratch, Stretch, shard_folder, sweep_stale_folders


def test_a_folder_goes_at_the_end_whatever_happens(tmp_path: Path) -> None:
    with shard_folder(tmp_path) as first, shard_folder(tmp_path) as second:
        (first / "shard.tar").write_bytes(b"x")
        assert first != second
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), shard_folder(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_only_what_dead_processes_left_is_swept(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from pipeline.precompute.scratch import shard_folder\n"
        "with shard_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'shard.tar').write_bytes(b'half')\n"
        "    print(folder, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        folder = Path(other.stdout.readline().strip())
        (tmp_path / "ldznet-shard-a-file").write_text("no folder")
        (tmp_path / "ldznet-shard-a-link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere").mkdir()
        with shard_folder(tmp_path) as own:
            assert sweep_stale_folders(tmp_path) == 0
            assert own.is_dir()
            assert (folder / "shard.tar").is_file()
            other.kill()
            other.wait()
            assert folder.is_dir()
            assert sweep_stale_folders(tmp_path) == 1
            assert own.is_dir()
    assert not folder.exists()
    assert (tmp_path / "elsewhere").is_dir()
    assert sweep_stale_folders(tmp_path) == 0


def test_sweepers_and_new_folders_do_not_meet(tmp_path: Path) -> None:
    done, faults = threading.Event(), []

    def sweep() -> None:
        while not done.is_set():
            sweep_stale_folders(tmp_path)

    def work() -> None:
        try:
            for _ in range(200):
                with shard_folder(tmp_path) as folder:
                    (folder / "shard.tar").write_bytes(b"x")
                    assert (folder / "shard.tar").read_bytes() == b"x"
        except (OSError, AssertionError) as error:
            faults.append(error)

    sweepers = [threading.Thread(target=sweep) for _ in range(2)]
    workers = [threading.Thread(target=work) for _ in range(2)]
    for thread in (*sweepers, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    for thread in sweepers:
        thread.join()
    assert faults == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_and_bytes_come_back_as_they_were(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = torch.randn(5, 4, 3, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensors = tensors.to(memory_format=torch.channels_last)
    with Scratch(tmp_path / "scratch") as scratch:
        places = [scratch.put_tensor(tensor) for tensor in tensors]
        assert scratch.get(scratch.put(b"a mask")) == b"a mask"
        assert scratch.get(scratch.put(b"")) == b""
        order = [3, 0, 0, 4]
        again = scratch.get_tensors([places[i] for i in order], shape=(4, 3, 2), dtype=dtype)
        assert torch.equal(again, tensors[order])
        assert scratch.get_tensors([], shape=(4, 3, 2), dtype=dtype).shape == (0, 4, 3, 2)
        with pytest.raises(AssertionError, match="has been cut"):
            scratch.get(Stretch(0, 10**6))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    with Scratch(tmp_path / "scratch") as scratch:
        full = os.open("/dev/full", os.O_WRONLY)
        monkeypatch.setattr(scratch, "_file", os.dup2(full, scratch._file))
        with pytest.raises(OSError, match=r"No space left on device.*scratch"):
            scratch.put(b"x")
        os.close(full)
