"""One process per contender. Modules here are programs; a program's options are one JSON object on its command line.

A peer's environment has nothing of ours but this folder. So `serve` and `peers` need the standard library, numpy, and
the peer alone.
"""
