"""The command line: `python -m cio_pipeline`, or `cio_pipeline` where the package is installed."""

import gc
import signal
import sys


def main() -> int:
    """Runs the command that this process's arguments name. Returns the exit status."""
    # What Dagster and pandas load is no garbage, and looking for some takes a third of the time.
    gc.set_threshold(100_000, 50, 100)
    try:
        from cio_pipeline.cli.commands import main

        status = main()
    except KeyboardInterrupt:  # while the commands were being loaded
        status = 130
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C once more would be a traceback of Python's own end
    return status


if __name__ == "__main__":
    sys.exit(main())
