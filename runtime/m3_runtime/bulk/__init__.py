"""Bulk encoding: large files to shards of vectors, in constant memory, resumable after any crash.

    job       inputs and settings
    shards    rows → shards → vectors → Parquet
    folder    the output folder; its journal says which shards are done
    run       the whole job: in this process, in several (workers), on a Ray cluster (cluster)

Needs the extra `bulk`, and `cluster` the extra `ray`.
"""
