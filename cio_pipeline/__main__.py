"""`python -m cio_pipeline`: the command line."""

import sys

from cio_pipeline.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
