"""The server: a bundle behind HTTP, with batching across requests. Needs the extra `serve`.

A request passes `tracing`, `addresses`, `admission`, a route (`routes`, `schemas`, `answers`), the
`service`, the `batcher` and its `queue`. `shares` bounds what clients hold, and `kept` has what was computed for
requests without an answer. `serving` starts one process or
several, `logs` what they log.
"""
