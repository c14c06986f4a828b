"""The server: a bundle behind HTTP, with batching across requests. Needs the extra `serve`.

A request passes `tracing` (with `otel`), `admission`, a route (`routes`, `schemas`, `answers`), the `service`, the
`batcher` and its `queue`. `worker` is one process that serves, `serving` starts one or several, `logs` what they log.
"""
