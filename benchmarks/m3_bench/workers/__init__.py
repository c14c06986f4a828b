"""One process per contender. Each module here is a program; peers' programs run in environments of their own.

Those environments have nothing of ours but this folder, so `messages` and `serve` need the standard library alone,
and a peer's program needs besides only the peer. A program's options are one JSON object on its command line.
"""
