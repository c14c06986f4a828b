"""Rows and vectors in and out of files."""
