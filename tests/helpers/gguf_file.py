"""Write a tiny llama as a GGUF file."""

from pathlib import Path

import gguf
import torch
from transformers import PreTrainedModel

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(model: PreTrainedModel, path: Path, leave_out: str = "") -> None:
    """Write a model of the llama family, but one tensor, with a tokenizer of its token ids."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["w", "1", *(f"w{i}" for i in range(config.vocab_size - 2))])
    writer.add_token_types([1] * config.vocab_size)
    writer.add_token_merges(["w 1"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in model.state_dict().items():
        if name == leave_out or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        written = WHOLE.get(name)
        if written is None:
            _, _, index, rest = name.split(".", 3)
            module, kind = rest.rsplit(".", 1)
            written = f"blk.{index}.{NAMES[module]}.{kind}"
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
            if count := heads.get(NAMES[module]):  # llama.cpp rotates neighbours, not halves
                tensor = tensor.view(count, 2, -1, tensor.shape[1]).transpose(1, 2)
                tensor = tensor.reshape(-1, tensor.shape[-1])
        writer.add_tensor(written, tensor.to(torch.float32).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
