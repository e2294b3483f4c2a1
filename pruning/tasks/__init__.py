"""Tasks that encoders are fine-tuned for."""
