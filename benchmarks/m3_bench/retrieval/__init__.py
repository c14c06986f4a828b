"""Searching labelled datasets with BM25 and with the heads of bundles."""
