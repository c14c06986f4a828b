"""`python -m m3_export` is `m3-export`."""

from m3_export.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
