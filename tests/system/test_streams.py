"""What is printed goes where it can, and else nowhere."""

import errno
import io
import os
import sys

import pytest

from pruning.system.streams import steady_streams


@pytest.fixture
def output(monkeypatch):
    """Let standard output be a file descriptor of our own; give what replaces it."""

    def give(number: int, **options):
        stream = os.fdopen(number, "w", **options)
        monkeypatch.setattr(sys, "stdout", stream)
        return stream

    return give


def test_a_pipe_that_nobody_reads_is_no_error(output):
    reads, writes = os.pipe()
    os.close(reads)
    stream = output(writes)
    with steady_streams() as fault:
        print("to nobody", flush=True)
        print("and more")
        assert fault() == ""
    assert sys.stdout is stream
    stream.close()  # what was kept back went nowhere


def test_a_full_disk_is_said_once(monkeypatch, tmp_path):
    class Full(io.FileIO):
        def write(self, content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    stream = io.TextIOWrapper(io.BufferedWriter(Full(tmp_path / "said.txt", "w")))
    monkeypatch.setattr(sys, "stdout", stream)
    with steady_streams() as fault:
        print("much", flush=True)
        assert fault() == "standard output: No space left on device: write it to another place"
    with pytest.raises(OSError, match="No space"):
        stream.close()


def test_characters_that_there_are_not_become_question_marks(output, tmp_path):
    path = tmp_path / "said.txt"
    stream = output(os.open(path, os.O_WRONLY | os.O_CREAT), encoding="ascii")
    with steady_streams():
        print("a naïve → b")
    stream.close()
    assert path.read_text() == "a na?ve ? b\n"


def test_without_streams_nothing_is_printed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with steady_streams() as fault:
        print("to nobody")
        assert fault() == ""
    assert sys.stdout is None
