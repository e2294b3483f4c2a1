"""Shapes of models that several benchmarks give random weights."""

LLAMA2_7B = {  # as its config.json says
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
}
