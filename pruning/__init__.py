"""Inference-aware structured pruning of language models."""
