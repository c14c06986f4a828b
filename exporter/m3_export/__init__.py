"""BGE-M3 checkpoints to verified CPU bundles."""
