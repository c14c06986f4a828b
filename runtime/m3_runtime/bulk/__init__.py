"""Bulk encoding: large files to shards of vectors, in constant memory, resumable after any crash.

    inputs → rows → shards                 sources, lines, tables, rows; sharding
    shard → vectors → Parquet              encode, schema, colbert
    what is done, and what is left         job, journal, folder, disk
    the whole: here, in processes, on Ray  run, workers, cluster, progress

Needs the extra `bulk`, and `cluster` the extra `ray`.
"""
