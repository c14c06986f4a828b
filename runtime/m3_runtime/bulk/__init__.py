"""Bulk encoding: large files to shards of vectors, in constant memory, resumable after any crash.

    inputs → rows → shards
    (sources, lines, tables; sharding)

Needs the extra `bulk`.
"""
