"""What can be cut in a model, and how: sites, shrinking, checkpoints."""
