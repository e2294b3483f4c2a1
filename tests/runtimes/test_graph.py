"""Models as engines run them: the answers are those of transformers, whatever was removed."""

import pytest
import torch

from pruning.job.export import export
from pruning.models import checkpoint
from pruning.models.shape import Heads, Width
from pruning.models.shrink import resized, shrink_
from pruning.models.sites import Kind, blocks, sites
from pruning.runtimes.graph import cached, exported
from pruning.runtimes.graph_runtime import GraphRuntime
from pruning.runtimes.onnxruntime import OnnxRuntime
from pruning.runtimes.onnxruntime import Precision as OnnxPrecision
from pruning.runtimes.openvino import OpenVINO
from pruning.runtimes.openvino import Precision as OpenVINOPrecision
from pruning.runtimes.workload import Phase, Workload
from pruning.system.writing import explained
from tests.helpers.allocations import mixed
from tests.helpers.families import EVERY, ROUTING, llama
from tests.helpers.place import Place
from tests.helpers.tiny import word_tokenizer

pytestmark = [pytest.mark.job, pytest.mark.filterwarnings("ignore")]  # of exporters

EXACT: list[GraphRuntime] = [
    OnnxRuntime(),
    OpenVINO(precision=OpenVINOPrecision.float32),
]
CLOSE: list[GraphRuntime] = [
    OnnxRuntime(precision=OnnxPrecision.int8),
    OpenVINO(precision=OpenVINOPrecision.int8),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("runtimes"))


@pytest.fixture(autouse=True)
def installed(request):
    """Skip what is about an engine that is not installed."""
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if "runtime" in params:
        pytest.importorskip(params["runtime"].package)


def pruned(family: str):
    """Remove KV groups, heads, channels, a whole attention, a whole FFN, and one whole block."""
    model = EVERY[family]()
    allocation = mixed(model)
    for site in sites(model):
        if site.block == 1 and site.kind is Kind.FFN:
            allocation[site] = torch.zeros(site.units, dtype=torch.bool)
    return shrink_(model, allocation).eval()


def tokens(batch: int, count: int) -> torch.Tensor:
    return torch.randint(3, 120, (batch, count), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("family", [family for family in EVERY if family not in ROUTING])
@pytest.mark.parametrize("runtime", EXACT, ids=lambda runtime: runtime.name)
def test_an_engine_gives_the_logits_of_transformers(runtime, family):
    model, ids = pruned(family), tokens(3, 11)
    mine, theirs = runtime.served(model)(input_ids=ids), model(input_ids=ids)
    for name in ("logits", "start_logits", "end_logits"):
        if (expected := getattr(theirs, name, None)) is not None:
            torch.testing.assert_close(getattr(mine, name), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("runtime", EXACT, ids=lambda runtime: runtime.name)
def test_experts_are_no_graph(runtime):
    with pytest.raises(ValueError, match=rf"^runtime={runtime.name}: which experts are read"):
        runtime.check(EVERY["olmoe"](), None)


@torch.no_grad()
@pytest.mark.parametrize("runtime", EXACT, ids=lambda runtime: runtime.name)
def test_a_token_behind_a_cache_is_the_last_of_the_whole_text(runtime):
    model, ids = pruned("llama"), tokens(2, 9)
    past = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
    session = runtime.session(model)
    given = {"input_ids": ids[:, -1:].numpy(), "positions": torch.tensor([0]).numpy()}
    for name in cached(model, 1, 0):
        _, index, half = name.split(".")
        layer = past.layers[int(index)]
        given[name] = (layer.keys if half == "key" else layer.values).numpy()
    answers = dict(zip(session.outputs, session(given), strict=True))
    expected = model(input_ids=ids).logits[:, -1:]
    torch.testing.assert_close(torch.tensor(answers["logits"]), expected, rtol=1e-4, atol=1e-4)
    whole = model(input_ids=ids, use_cache=True).past_key_values.layers[0].keys
    present = torch.tensor(answers["present.0.key"])
    torch.testing.assert_close(present, whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("runtime", CLOSE, ids=lambda runtime: runtime.name)
def test_eight_bits_are_near_and_not_the_same(runtime):
    model, ids = pruned("qwen3"), tokens(2, 30)
    mine, theirs = runtime.served(model)(input_ids=ids).logits, model(input_ids=ids).logits
    off = float((mine - theirs).norm() / theirs.norm())
    assert 1e-4 < off < 0.2


@torch.no_grad()
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("runtime", EXACT, ids=lambda runtime: runtime.name)
def test_a_block_is_timed_as_so_many_of_it(runtime, phase, monkeypatch):
    """The work of a call of a block: as many as said, each with the shape of the block."""
    model, work = pruned("gpt2"), Workload(Phase(phase), 2, 6)
    block = blocks(model)[0]
    with monkeypatch.context() as patched:
        patched.setattr(type(runtime), "end_to_end", lambda self, model, work: lambda: model)
        several = runtime.block(model, work)(block)()
    assert len(blocks(several)) == runtime.copies(model)
    ids = tokens(1, 5)
    hidden = model.get_input_embeddings()(ids)
    again = several(inputs_embeds=hidden, use_cache=False, output_hidden_states=True)
    once = model(inputs_embeds=hidden, use_cache=False, output_hidden_states=True)
    torch.testing.assert_close(again.hidden_states[1], once.hidden_states[1])
    weights = [p for layer in blocks(several) for p in layer.parameters()]
    assert len({p.data_ptr() for p in weights}) == len(weights)  # none is read twice from a cache
    runtime.block(model, work)(block)()
    runtime.block(model, work)(resized(model, Heads(0, 0), Width(0)))()


@pytest.mark.parametrize("runtime", EXACT, ids=lambda runtime: runtime.name)
def test_what_is_written_answers_like_the_model(runtime, tmp_path):
    checkpoint.save(pruned("qwen2"), word_tokenizer(), tmp_path / "model", "")
    alike = export(tmp_path / "model", [runtime])[runtime.name]
    assert alike.same == 1
    assert abs(alike.kl) < 1e-6


@pytest.mark.parametrize("runtime", EXACT, ids=lambda runtime: runtime.name)
def test_an_engine_that_answers_otherwise_leaves_nothing(runtime, tmp_path, monkeypatch):
    checkpoint.save(pruned("qwen2"), word_tokenizer(), tmp_path / "model", "")
    before = sorted(tmp_path.iterdir())
    other = shrink_(EVERY["qwen2"](), {}).eval()
    torch.nn.init.normal_(other.get_input_embeddings().weight)
    monkeypatch.setattr(type(runtime), "served", lambda *_: other)
    with pytest.raises(ValueError, match=rf"^runtime={runtime.name}: .* was removed"):
        export(tmp_path / "model", [runtime])
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("runtime", EXACT, ids=lambda runtime: runtime.name)
def test_an_export_that_is_interrupted_leaves_nothing(runtime, tmp_path, monkeypatch):

    def killed(self, graph, directory):
        (directory / "half").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(type(runtime), "write", killed)
    with pytest.raises(KeyboardInterrupt):
        runtime.export(pruned("llama"), None, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("error")
def test_a_runtime_that_is_not_installed_says_how_to(monkeypatch):
    monkeypatch.setattr(OpenVINO, "package", "no-such-package")
    with pytest.raises(ValueError, match=r"^runtime=openvino needs .*\[openvino\]'$"):
        assert OpenVINO().version


def test_a_job_is_pruned_for_a_runtime_and_leaves_what_it_serves(place, jobs):
    pytest.importorskip("openvino")
    words = "runtime=openvino", "runtime.precision=float32", "speedup=1.2"
    done = jobs(*place.arguments(*words, outputs="openvino"))
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = place.results("openvino")
    assert result["latency"]["runtime"].startswith("openvino ")
    served, dense = result["evaluation"]["served"], result["evaluation"]["dense"]
    assert set(served) == {"dense", "pruned"}
    text = next(key for key in dense if "perplexity" in key)
    assert served["dense"][text] == pytest.approx(dense[text], rel=1e-4)
    assert len([*(place.root / "openvino").glob("*/openvino/openvino_model.xml")]) == 1


def test_a_disk_on_which_openvino_cannot_write_is_named(tmp_path, monkeypatch):
    openvino = pytest.importorskip("openvino")

    def full(*_, **__):
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr(openvino, "save_model", full)
    with pytest.raises(OSError, match="iostream error") as error:
        OpenVINO().write(exported(llama()), tmp_path)
    assert error.value.filename == str(tmp_path / "openvino_model.xml")
    assert explained(error.value).endswith("look at the disk, and at the space on it")
