"""`python -m m3_runtime` is the command m3-runtime."""

import sys

from m3_runtime.cli import main

if __name__ == "__main__":
    sys.exit(main())
