"""What any engine in a process of its own does: answers, errors, and its end, each one line."""

import gc
import os
import signal
import sys

import pytest
import torch

from pruning.runtimes.worker_process import ENGINES, Worker

SCRIPT = """
import json, os, sys
out = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
print("what it prints", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    answer, body = {"order": order, "threads": os.environ["THREADS"]}, b""
    if order["do"] == "fail":
        answer = {"error": "no such model"}
    if order["do"] == "end":
        sys.exit(3)
    if order["do"] == "array":
        answer, body = {"shape": [2, 1]}, b"\\0\\0\\x80\\x3f\\0\\0\\0\\x40"
    out.write(json.dumps(answer).encode() + b"\\n" + body)
    out.flush()
"""


@pytest.fixture
def worker():
    command = (sys.executable, "-c", SCRIPT)
    return Worker("mine", "the engine", "do otherwise", command, (("THREADS", "3"),))


def test_an_order_is_a_line_and_so_is_its_answer(worker):
    engine = worker.process()
    assert worker.process() is engine
    engine.unused.append(7)
    found = engine.ask("look", at="this")
    assert found == {"order": {"do": "look", "free": [7], "at": "this"}, "threads": "3"}
    assert torch.equal(engine.ask("array"), torch.tensor([[1.0], [2.0]]))
    with pytest.raises(
        ValueError, match=r"^runtime=mine: no such model \(what it prints\): do other"
    ):
        engine.ask("fail")
    assert engine.ask("look")["order"]["free"] == []


@pytest.mark.parametrize("how", ["code 3", "SIGKILL"])
def test_an_engine_that_ends_is_one_line_and_another_is_started(worker, how):
    engine = worker.process()
    engine.ask("look")
    if how == "SIGKILL":
        os.kill(engine.process.pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"^runtime=mine: the engine ended with {how} \(wha"):
            engine.ask("end")
    other = worker.process()
    assert other is not engine
    assert other.ask("look")


def test_a_process_ends_when_nobody_has_its_models(worker):
    engine = worker.process()
    engine.ask("look")
    process = engine.process
    del engine
    gc.collect()
    assert process.poll() == 0
    assert worker not in ENGINES
