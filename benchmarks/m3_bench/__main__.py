"""`python -m m3_bench`."""

from m3_bench.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
