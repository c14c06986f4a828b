"""Measures variants and peers against each other, on one machine, in one run."""
