"""Temporary files for what does not fit in memory. They hold people's data, so they go, even after a run that was killed."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "cio_pipeline_spill_"
LEFT_AFTER_SECONDS = 24 * 3600
"""No run is still at work on a file that nobody has touched for so long."""


@contextmanager
def spill_folder() -> Iterator[Path]:
    """A folder that only its owner can read, gone with the block; what killed runs have left goes when it is made."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > LEFT_AFTER_SECONDS:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        yield Path(folder)
