"""What an engine cannot run is never chosen for it: a test per rule, without the engine.

Rules of llama.cpp: as many query heads in every KV group of a block; no FFN of width 0; a block of
which nothing is left has no place; the first block has attention; single projections stay whole,
and so do heads and widths of a qwen3 with a head of its own. Graphs take blocks of any shape; their
calls are told apart by a KV cache, so some attention stays.
"""

import numpy as np
import pytest
import torch

from pruning.composition import SCHEMAS
from pruning.latency.measurement import Measurement
from pruning.latency.profile import levels, profile
from pruning.latency.reference_models import reference_models
from pruning.latency.table import Shapes
from pruning.models.modeling_pruned import block_shape
from pruning.models.shape import Heads
from pruning.models.shrink import copy_sharing_weights, resize_
from pruning.models.sites import Kind, architecture, blocks, linears, shape, sites
from pruning.runtimes.gguf_file import write_gguf
from pruning.runtimes.gguf_layout import FAMILIES, WIDTH, layout
from pruning.runtimes.gguf_precision import Precision
from pruning.runtimes.graph import attending, exported
from pruning.runtimes.llama_cpp import LlamaCpp
from pruning.runtimes.workload import Phase, Workload
from pruning.search.problem import Problem
from pruning.system.cache import Cache
from tests.helpers.families import EVERY, llama, qwen3
from tests.helpers.tiny import linear_table
from tests.helpers.written import untied

WORK = Workload(Phase.prefill, 1, 8)
DRAWS = 12
DECODERS = [name for name, make in EVERY.items() if not architecture(make()).encoder]


class Written:
    """Stands in for a model that llama.cpp has loaded: it was written for it."""

    def __init__(self, model, path):
        write_gguf(model, None, path)

    def prepare(self, work):
        pass

    def __call__(self):
        pass


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    """Make a llama.cpp of which only the file is written."""
    written = lambda self, model, path=None: Written(model, tmp_path / "a")  # noqa: E731
    monkeypatch.setattr(LlamaCpp, "loaded", written)
    return LlamaCpp()


def chosen(model, seed: int, speedup: float, directory) -> Shapes:
    """Search the levels of a table for a speedup, under losses that are drawn."""
    table, draw = linear_table(model), np.random.default_rng(seed)
    shapes = {site: table.levels(site) for site in sites(model)}
    ms = [np.array([table.ms(s, level) for level in of]) for s, of in shapes.items()]
    loss = [np.sort(draw.random(len(of))) * draw.random() for of in shapes.values()]
    posed = Problem(
        [*shapes], [*shapes.values()], loss, ms, ms, table.rest, None, Cache(directory), {}
    )
    least = table.budget(table.most([*shapes])) * (1 + 1e-6)
    choice = posed.solve(loss, max(least, table.budget(speedup)))
    assert choice is not None
    return {site: of[level] for (site, of), level in zip(shapes.items(), choice, strict=True)}


def cut(model, left: Shapes):
    """Return a model of these shapes."""
    made = copy_sharing_weights(model)
    for index, block in enumerate(blocks(made)):
        mine = [level for site, level in left.items() if site.block == index]
        resize_(block, architecture(made), mine)
    return made


CHOICES = [(seed, 1.1 + 0.2 * seed) for seed in range(DRAWS)] + [(0, 1e9)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_level_of_a_table_and_what_is_timed_beside_them_is_written(family, runtime):
    model = EVERY[family]()
    made = levels(model, sites(model), runtime, WORK, 32)
    attention = {level for part, level in made if part == Kind.ATTENTION}
    assert {type(level) for level in attention} == {Heads}
    for reference in reference_models(model, sites(model), 32):
        runtime.end_to_end(reference.model, WORK)


@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_is_chosen_is_what_llama_cpp_takes(family, tmp_path):
    model = EVERY[family]()
    for seed, speedup in CHOICES:
        left = cut(model, chosen(model, seed, speedup, tmp_path))
        made = layout(left)
        shapes = [block_shape(block, architecture(left)) for block in blocks(left)]
        assert made.stays == [index for index, shape in enumerate(shapes) if any(shape)]
        assert made.written[0].groups  # the first block says that there is attention
        for index, sizes in zip(made.stays, made.written, strict=True):
            groups, per_group, width, _ = shapes[index]
            assert sizes.width == (width or WIDTH)
            assert sizes.no_ffn == (not width)
            assert (sizes.groups, sizes.per_group) == (groups, per_group) or sizes.no_attention
        write_gguf(left, None, tmp_path / "a", Precision.f32)


@pytest.mark.parametrize(
    "family", [f for f, make in EVERY.items() if not architecture(make()).encoder]
)
def test_some_attention_stays_whatever_the_speedup(family, tmp_path):
    """What reads a cache looks there; a graph without one could not tell prompt from answer."""
    model = EVERY[family]()
    left = cut(model, chosen(model, 0, 1e9, tmp_path))
    assert attending(left)[:1] == [0]
    assert not any(block_shape(block, architecture(left))[2] for block in blocks(left))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_what_is_left_at_the_highest_speedup_is_a_graph(family, tmp_path):
    model = EVERY[family]()
    graph = exported(cut(model, chosen(model, 0, 1e9, tmp_path)))
    encoder = architecture(model).encoder
    assert [name for name in graph.inputs if "past" in name] == (
        [] if encoder else ["past.0.key", "past.0.value"]
    )


def test_groups_of_unlike_numbers_of_query_heads_are_no_shape():
    attention = sites(llama())[0]
    keep = torch.ones(attention.units, dtype=torch.bool)
    keep[0] = False
    with pytest.raises(ValueError, match="keep the same number in each"):
        shape(attention, keep)


@pytest.mark.parametrize("name", [n for n, k in SCHEMAS["runtime"].items() if not k.projections])
def test_single_projections_are_refused_before_anything_is_timed(name, monkeypatch):
    made, model = SCHEMAS["runtime"][name](), llama()
    for call in ("end_to_end", "block"):
        monkeypatch.setattr(type(made), call, lambda *_: pytest.fail("timed"))
    how = Measurement(made, WORK, 1, 32, None, 0.1, 1)
    with pytest.raises(ValueError, match=rf"^runtime={name} is for methods that cut blocks"):
        profile(model, how, linears(model))


def test_a_qwen3_with_a_head_of_its_own_is_refused_before_anything_is_timed(runtime, monkeypatch):
    model = untied(qwen3())
    monkeypatch.setattr(Written, "__call__", lambda _: pytest.fail("timed"))
    how = Measurement(runtime, WORK, 1, 32, None, 0.1, 1)
    with pytest.raises(ValueError, match=r"^runtime=llama_cpp: .*no untied head there: give"):
        profile(model, how, sites(model))
