"""The command line: `python -m cio_pipeline`, or `cio_pipeline` if the package is installed."""

import gc
import signal
import sys


def main() -> int:
    """Runs the command that this process's arguments name. Returns the exit status."""
    # What Dagster and pandas load is not garbage, and looking for garbage in it would take a third of the time.
    gc.set_threshold(100_000, 50, 100)
    try:
        from cio_pipeline.cli.commands import main

        status = main()
    except KeyboardInterrupt:  # while the commands were being loaded
        status = 130
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # another Ctrl-C would print a traceback while Python exits
    gc.freeze()  # Python would look for garbage several times more before it exits, which takes half a second
    return status


if __name__ == "__main__":
    sys.exit(main())
