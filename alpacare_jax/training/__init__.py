"""One training run: its config, compiled step, optimizers, reports and folder."""
