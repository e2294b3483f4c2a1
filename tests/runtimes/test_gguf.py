"""What is written to GGUF is the model: read by transformers, or tensor by tensor."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM

from pruning.models.checkpoint import describe
from pruning.models.modeling_pruned import factorise_
from pruning.models.shrink import copy_sharing_weights, shrink_
from pruning.models.sites import blocks
from pruning.runtimes import gguf_file
from pruning.runtimes.gguf_file import interleaved, write_gguf
from pruning.runtimes.gguf_layout import layout, rope_factors
from pruning.runtimes.gguf_precision import Precision
from tests.helpers.allocations import uniform
from tests.helpers.families import EVERY, llama, qwen2, qwen3
from tests.helpers.written import LLAMA3, pruned, untied, with_output_biases, without

IDS = torch.arange(5, 11)[None]  # mistral looks back no further


def read(path):
    """Return a file's architecture, its fields behind it, and its tensors by name."""
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    kind = fields["general.architecture"]
    fields |= {n.removeprefix(f"{kind}."): v for n, v in fields.items() if n.startswith(kind)}
    tensors = {
        t.name: torch.tensor(gguf.dequantize(np.array(t.data), t.tensor_type))
        for t in reader.tensors
    }
    return kind, fields, tensors


@torch.no_grad()
@pytest.mark.parametrize("smaller", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_equal_blocks_are_read_by_transformers(tmp_path, family, smaller):
    model = EVERY[family]()
    if smaller:  # qwen2's queries are as wide as the stream, there
        groups = None if family == "qwen2" else 2
        model = shrink_(copy_sharing_weights(model), uniform(model, groups, 37))
    path = tmp_path / "model.gguf"
    write_gguf(model, None, path, Precision.f32)
    config = describe(model)  # transformers takes some sizes of heads for granted
    back = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, config=config, dtype=torch.float32
    )
    found, expected = back(input_ids=IDS).logits, model(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_uneven_blocks_are_those_of_deci(tmp_path, family):
    model = pruned(EVERY[family]())
    path = tmp_path / "model.gguf"
    write_gguf(model, None, path, Precision.f32)
    kind, fields, tensors = read(path)
    assert kind == "deci"
    assert fields["attention.head_count"] == [6, 0, 3]
    assert fields["attention.head_count_kv"] == [3, 0, 3]
    width = blocks(model)[0].mlp.down_proj.in_features
    assert fields["feed_forward_length"] == [width, 96, 32]
    assert fields["attention.key_length"] == (16 if family == "mistral" else 8)
    parts = {name.split(".")[2] for name in tensors if name.startswith("blk.1.")}
    assert parts == {"ffn_norm", "ffn_gate", "ffn_up", "ffn_down"}
    assert not any(tensors[f"blk.2.ffn_{part}.weight"].any() for part in ("gate", "up", "down"))
    for index, heads in ((0, 3), (2, 3)):
        attention = blocks(model)[index].self_attn
        for name, tensor in attention.k_proj.named_parameters():
            written = tensors[f"blk.{index}.attn_k.{name}"]
            assert torch.equal(written, interleaved(tensor, heads))
        assert torch.equal(tensors[f"blk.{index}.attn_v.weight"], attention.v_proj.weight)
        assert torch.equal(tensors[f"blk.{index}.attn_output.weight"], attention.o_proj.weight)
    assert ("output.weight" in tensors) == (not model.config.tie_word_embeddings)


@torch.no_grad()
def test_an_uneven_qwen3_is_an_openelm(tmp_path):
    model = pruned(qwen3())
    write_gguf(model, None, tmp_path / "a", Precision.f32)
    kind, fields, tensors = read(tmp_path / "a")
    assert kind == "openelm"
    assert fields["attention.head_count"] == [6, 1, 3]
    assert fields["feed_forward_length"][1:] == [96, 32]
    attention = blocks(model)[2].self_attn
    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    rows = torch.cat([part.weight for part in parts])
    assert torch.equal(tensors["blk.2.attn_qkv.weight"], rows)
    assert torch.equal(tensors["blk.2.attn_q_norm.weight"], attention.q_norm.weight)
    assert not tensors["blk.1.attn_output.weight"].any()
    assert "output.weight" not in tensors


def test_rows_that_are_rotated_together_are_neighbours():
    rows = torch.arange(8.0)[:, None]
    assert interleaved(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert interleaved(rows[:, 0], 1).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_a_block_of_which_nothing_is_left_is_dropped(tmp_path):
    model = without(llama(), (0, 0, 0, 0), (1, 0, 0, 96))
    write_gguf(model, None, tmp_path / "a", Precision.f32)
    kind, fields, tensors = read(tmp_path / "a")
    assert (kind, fields["block_count"]) == ("deci", 2)
    assert fields["attention.head_count"] == [1, 8]  # the first says that there is attention
    assert not tensors["blk.0.attn_output.weight"].any()
    assert torch.equal(tensors["blk.0.ffn_up.weight"], blocks(model)[1].mlp.up_proj.weight)
    assert torch.equal(tensors["blk.1.ffn_up.weight"], blocks(model)[2].mlp.up_proj.weight)


def test_biases_are_written(tmp_path):
    model = llama(attention_bias=True, mlp_bias=True)
    write_gguf(model, None, tmp_path / "a", Precision.f32)
    tensors = read(tmp_path / "a")[2]
    block = blocks(model)[1]
    assert torch.equal(tensors["blk.1.attn_v.bias"], block.self_attn.v_proj.bias)
    assert torch.equal(tensors["blk.1.attn_q.bias"], interleaved(block.self_attn.q_proj.bias, 8))
    assert torch.equal(tensors["blk.1.ffn_down.bias"], block.mlp.down_proj.bias)
    assert layout(with_output_biases(qwen2())).name == "deci"  # llama.cpp's qwen2 has none there


def test_scaled_positions_are_factors(tmp_path):
    model = llama(rope_parameters=LLAMA3)
    factors = rope_factors(model)
    assert factors is not None
    assert factors[0] == 1.0
    assert factors[-1] == pytest.approx(8.0)
    write_gguf(model, None, tmp_path / "a")
    assert torch.equal(read(tmp_path / "a")[2]["rope_freqs.weight"], factors)


def test_eight_bits_where_rows_are_made_of_blocks(tmp_path):
    model = pruned(llama())
    write_gguf(model, None, tmp_path / "a", Precision.q8_0)
    stored = {t.name: t.tensor_type.name for t in GGUFReader(tmp_path / "a").tensors}
    assert stored["blk.0.attn_q.weight"] == "Q8_0"
    assert stored["blk.0.ffn_down.weight"] == "F16"  # an odd width
    assert stored["blk.0.attn_norm.weight"] == "F32"
    written = read(tmp_path / "a")[2]["blk.0.attn_v.weight"]
    torch.testing.assert_close(
        written, blocks(model)[0].self_attn.v_proj.weight.data, rtol=0, atol=0.01
    )


def low_rank(model):
    """Make a projection a product of two."""
    factorise_(blocks(model)[0], "mlp.up_proj", 4)
    return model


def nothing_left():
    """Return a model without blocks."""
    return without(llama(), *((index, 0, 0, 0) for index in range(3)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (EVERY["gemma"], "family gemma"),
        (EVERY["phi3"], "family phi3"),
        (EVERY["gpt2"], "family gpt2"),
        (lambda: low_rank(llama()), "product of two"),
        (nothing_left, "nothing is left"),
        (lambda: with_output_biases(qwen3()), "qwen3 with biases"),
        (lambda: pruned(untied(qwen3())), "no untied head"),
        (lambda: llama(rope_parameters={**LLAMA3, "rope_type": "dynamic"}), "of the type dynamic"),
    ],
)
def test_what_has_no_place_there_is_refused(tmp_path, make, said):
    with pytest.raises(ValueError, match=rf"^runtime=llama_cpp: .*{said}.*give .*$") as error:
        write_gguf(make(), None, tmp_path / "a")
    assert "\n" not in str(error.value)
    assert not [*tmp_path.iterdir()]


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    def broken(*args):
        raise OSError("no space left")

    monkeypatch.setattr(gguf_file.gguf, "quantize", broken)
    with pytest.raises(OSError, match="no space"):
        write_gguf(llama(), None, tmp_path / "a")
    assert not [*tmp_path.iterdir()]
