"""`python -m cio_pipeline`: the command line."""

import gc
import signal
import sys

if __name__ == "__main__":
    # What Dagster and pandas load is no garbage, and looking for some takes a third of the time.
    gc.set_threshold(100_000, 50, 100)
    try:
        from cio_pipeline.cli.commands import main

        status = main()
    except KeyboardInterrupt:  # while the commands were being loaded
        status = 130
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C once more would be a traceback of Python's own end
    sys.exit(status)
