"""What is timed is what the model does: against the model itself, without a cache."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pruning.composition import SCHEMAS
from pruning.models.shrink import copy_sharing_weights, shrink_
from pruning.models.sites import architecture, blocks
from pruning.runtimes.calls import FrozenCache, end_to_end, filled, of_block, random_tokens
from pruning.runtimes.torch_compile import TorchCompile
from pruning.runtimes.vllm import VLLM
from pruning.runtimes.workload import Phase, Workload
from tests.helpers.allocations import mixed
from tests.helpers.families import EVERY, llama
from tests.helpers.works import work_in

ROOT = Path(__file__).parents[2]
DECODERS = [name for name, make in EVERY.items() if not architecture(make()).encoder]
DECODE = Workload(Phase.decode, 2, 9)


def prompt(model, work=DECODE):
    """Return what is in the cache, and the token behind it."""
    ids = random_tokens(model, work.batch, work.sequence)
    return torch.cat([ids, random_tokens(model, work.batch, 1)], 1)


@torch.no_grad()
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("family", DECODERS)
def test_a_decode_call_is_the_last_token_of_the_whole_text(family, pruned):
    model = EVERY[family]()
    if pruned:
        model = shrink_(copy_sharing_weights(model), mixed(model))
    expected = model(input_ids=prompt(model), use_cache=False).logits[:, -1]
    call = end_to_end(model, DECODE)
    for _ in range(3):  # the cache does not grow
        torch.testing.assert_close(call().logits[:, -1], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("phase", ["decode", "auto"])
@pytest.mark.parametrize("family", EVERY)
def test_a_block_alone_does_what_it_does_in_the_model(family, phase):
    model = EVERY[family]()
    work = work_in(model, phase)
    ids = prompt(model) if phase == "decode" else random_tokens(model, 2, 9)
    seen = []
    hook = blocks(model)[0].register_forward_hook(lambda m, a, out: seen.append(out))
    model(input_ids=ids, **({} if work.phase is Phase.encode else {"use_cache": False}))
    hook.remove()
    expected = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    found = of_block(model, work)(blocks(model)[0])()
    torch.testing.assert_close(
        found, expected[:, -1:] if phase == "decode" else expected, rtol=1e-4, atol=1e-4
    )


CALLED = {  # modules are called as they are: no format of its own, nothing that is compiled
    name: kind
    for name, kind in SCHEMAS["runtime"].items()
    # in a process of its own
    if not kind.exports and kind not in (TorchCompile, VLLM)
}


@torch.no_grad()
@pytest.mark.parametrize("name", CALLED)
def test_a_runtime_calls_the_model_and_its_blocks(name):
    runtime, model = CALLED[name](), llama()
    assert runtime.version
    for phase in {Phase.prefill, Phase.decode} & {*runtime.phases}:
        work = Workload(phase, 2, 9)
        ids = random_tokens(model, 2, 9) if phase is Phase.prefill else prompt(model)
        expected = model(input_ids=ids, use_cache=False).logits[:, -1]
        found = runtime.end_to_end(model, work)().logits[:, -1]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        hidden = runtime.block(model, work)(blocks(model)[0])()
        torch.testing.assert_close(
            hidden, of_block(model, work)(blocks(model)[0])(), rtol=1e-4, atol=1e-4
        )


def compiled(*families: str) -> list[dict]:
    """Compile in a process of its own, where no call is checked for the types of its arguments.

    Torch does not compile these checks.
    """
    command = [sys.executable, "-m", "tests.helpers.compiled", *families]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.job
def test_every_level_is_compiled_once_however_many_there_are():
    """Torch compiles one function for 8 shapes, and then runs it as it is."""
    found = compiled("llama")
    assert [of["phase"] for of in found] == ["prefill", "decode"]
    for of in found:
        assert of["off"] < 1e-5
        assert of["graphs"] == 9 + 1


@pytest.mark.slow
def test_every_family_compiles():
    found = compiled(*EVERY, "low_rank")
    assert {of["family"] for of in found} == {*EVERY, "low_rank"}
    assert all(of["off"] < 1e-5 for of in found)


@torch.no_grad()
def test_a_cache_of_fewer_groups_has_the_first_ones():
    cache = filled(llama(), DECODE)
    assert isinstance(cache, FrozenCache)
    assert cache.get_seq_length() == 9
    small = cache.for_groups(3)
    assert small.layers[0].keys.shape == (2, 3, 9, 8)
    assert torch.equal(small.layers[0].keys, cache.layers[0].keys[:, :3])


@torch.no_grad()
def test_generate_writes_as_many_tokens_as_it_should():
    model = llama()
    work = Workload(Phase.generate, 2, 9, 5)
    assert end_to_end(model, work)().shape == (2, 14)
    assert work.steps() == [
        (1.0, Workload(Phase.prefill, 2, 9)),
        (4.0, Workload(Phase.decode, 2, 11)),
    ]


@torch.no_grad()
def test_prefill_and_encode_read_everything():
    model = llama()
    work = Workload(Phase.prefill, 2, 9)
    expected = model(input_ids=random_tokens(model, 2, 9)).logits[:, -1:]
    torch.testing.assert_close(end_to_end(model, work)().logits, expected)
    bert = EVERY["bert"]()
    work = Workload(Phase.encode, 2, 9)
    expected = bert(input_ids=random_tokens(bert, 2, 9)).logits
    torch.testing.assert_close(end_to_end(bert, work)().logits, expected)
