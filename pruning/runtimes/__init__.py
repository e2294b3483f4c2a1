"""What executes a model and can be timed."""
