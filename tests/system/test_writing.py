"""Errors of files: which file, what is wrong, what to do, in one line."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pruning.job.failure import in_one_line
from pruning.models import checkpoint
from pruning.system.cache import Cache
from pruning.system.files import clear_scratch, write_text
from pruning.system.writing import explained, of_files, writing
from tests.helpers.families import llama


def fail(code: int, name: Path | None = None) -> None:
    raise OSError(code, os.strerror(code), *([] if name is None else [str(name)]))


def test_a_full_disk_names_the_directory_and_what_is_free(tmp_path):
    with pytest.raises(ValueError, match="No space left") as caught, writing(tmp_path, "cache"):
        fail(errno.ENOSPC)  # of a write: it names no file
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}: No space left on device, where ")
    assert said.endswith("GiB are free: free some space there, or give cache another place")


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.EROFS, "make it writable"),
        (errno.EACCES, "make it writable"),
        (errno.ENOTDIR, "remove what is in its place"),
        (errno.EIO, "look at the disk"),
    ],
)
def test_a_directory_that_cannot_be_written(code, remedy, tmp_path):
    with pytest.raises(ValueError, match=remedy) as caught, writing(tmp_path, "cache"):
        fail(code, tmp_path / "levels" / "0123.lock")
    assert str(caught.value).startswith(f"{tmp_path}/levels/0123.lock: {os.strerror(code)}")
    with pytest.raises(OSError, match="elsewhere"), writing(tmp_path / "cache", "cache"):
        fail(code, tmp_path / "elsewhere")  # whoever catches it says which file


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG])
def test_safetensors_that_do_not_fit(code, tmp_path, monkeypatch):
    text = f"Error while serializing: I/O error: {os.strerror(code)} (os error {code})"
    cache = Cache(tmp_path)

    def build(directory: Path) -> None:
        (directory / "half").write_text("written")
        raise RuntimeError(text)  # the safetensors library has a class of its own

    with pytest.raises(ValueError, match=os.strerror(code)) as caught:
        cache.stage("levels", 1, build)
    assert str(caught.value).startswith(f"{tmp_path}: {os.strerror(code)}")
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"] == []

    def broken(directory: Path, **_) -> None:
        (Path(directory) / "model.safetensors").write_text("half")
        raise RuntimeError(text)

    model = llama()
    monkeypatch.setattr(model, "save_pretrained", broken)
    with pytest.raises(ValueError, match=os.strerror(code)), writing(tmp_path, "hydra.run.dir"):
        checkpoint.save(model, None, tmp_path / "out" / "model", "")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.job
def test_the_words_of_safetensors_and_torch_are_known(tmp_path):
    """In a process whose files may not grow beyond a kibibyte."""
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1, _limit) as pool:
        said = pool.map(_write, [str(tmp_path / "a.safetensors"), str(tmp_path / "a.pt")])
    assert (
        said[0]
        == f"{tmp_path}: File too large: allow larger files (ulimit -f), or give x another place"
    )
    assert said[1].startswith(f"{tmp_path}: Input/output error, where ")


def _limit() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))


def _write(path: str) -> str:
    try:
        with writing(Path(path).parent, "x"):
            tensors = {"a": torch.zeros(10_000)}
            save_file(tensors, path) if path.endswith(".safetensors") else torch.save(tensors, path)
    except ValueError as error:
        return str(error)
    return ""


def test_errors_of_files_are_for_users_and_others_are_not(tmp_path):
    with pytest.raises(FileNotFoundError) as gone:
        (tmp_path / "gone.txt").read_text()
    assert of_files(gone.value)
    assert in_one_line(gone.value) == f"{tmp_path}/gone.txt: No such file or directory: put it back"
    assert explained(gone.value, tmp_path) == in_one_line(gone.value)
    for error in (
        ConnectionResetError(104, "reset"),
        OSError("of a library"),
        KeyError("os error"),
    ):
        assert not of_files(error)
        assert in_one_line(error).startswith(type(error).__name__)


def test_a_cached_file_that_cannot_be_read_is_built_again(tmp_path, monkeypatch):
    built = []

    def build(directory: Path) -> None:
        built.append(directory)
        (directory / "data").write_text("right")

    entry = Cache(tmp_path).stage("levels", 1, build)
    os.utime(entry / "data", ns=(0, 0))  # so it is read again
    monkeypatch.setattr("pruning.system.cache.file_sha256", lambda path: fail(errno.EIO, path))
    with pytest.raises(ValueError, match="Input/output error"):
        Cache(tmp_path).stage("levels", 1, build)  # nor can what is new
    monkeypatch.undo()
    assert (Cache(tmp_path).stage("levels", 1, build) / "data").read_text() == "right"
    assert len(built) == 3


def test_what_killed_writers_left_goes_and_nothing_else(tmp_path, monkeypatch):
    """A job may run in a directory that holds files of others."""
    own = [tmp_path / name for name in (".pre-commit-config.yaml", ".my-settings", "result.json")]
    for path in own:
        path.write_text("kept")
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: None)  # killed in front of it
        write_text("{}", tmp_path / "result.json")
    assert len(list(tmp_path.iterdir())) == len(own) + 1
    clear_scratch(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(own)
    assert all(path.read_text() == "kept" for path in own)
