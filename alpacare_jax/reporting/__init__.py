"""What a training run leaves behind, read and shown; imports no jax."""
