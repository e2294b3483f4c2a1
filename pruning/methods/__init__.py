"""One paper, one file; `obs` is the mathematics that they share."""
