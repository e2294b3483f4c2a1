"""FLOP (arXiv:1910.04732): gates, their training, and what they keep."""
