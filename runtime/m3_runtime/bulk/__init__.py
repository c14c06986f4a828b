"""Bulk encoding: large files to shards of vectors, in constant memory, resumable after any crash.

    job       what is made of which files
    shards    rows → shards → vectors → Parquet; colbert makes ColBERT rows smaller
    folder    what is done, and what is left; journal keeps it
    run       the whole job: in this process, in several (workers), on a Ray cluster (cluster)

Needs the extra `bulk`, and `cluster` the extra `ray`.
"""
