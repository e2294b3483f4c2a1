"""Training after pruning: distillation, fine-tuning, LoRA; at once, or target by target."""
