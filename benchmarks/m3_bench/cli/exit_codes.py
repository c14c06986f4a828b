"""What a command's exit code says."""

EXIT_OK = 0
EXIT_FAILED = 1  # something could not be measured, read or written
EXIT_USAGE = 2  # the command line is not what it must be
EXIT_OVER_LIMIT = 3  # measured, and more than a limit allows
