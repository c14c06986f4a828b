"""The server: a bundle behind HTTP, with batching across requests. Needs the extra `serve`.

`queue` decides which texts run next (pure), `batcher` runs them, `app` puts routes around it, `serving` the process.
"""
