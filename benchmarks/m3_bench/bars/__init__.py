"""The bars: our variants against peers and the processor's ceiling, row by row."""
