"""Files, cache, locks, progress, environment: what knows nothing of pruning."""
