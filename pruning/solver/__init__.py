"""The mathematics of levels: obs, ordering, levels."""
