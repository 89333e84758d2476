"""Domain instruction tuning of LLaMA in JAX. Importing this package imports nothing else."""
