"""From options and texts to batches, engine runs and the outputs of the heads: pure numpy."""
