"""Training checkpoints: written, found, verified, deleted and loaded again."""
