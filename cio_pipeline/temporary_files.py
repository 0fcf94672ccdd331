"""Temporary files for data that does not fit in memory. It is personal data, so they are removed, even after a killed run.

Each run locks its folder while it runs, so that neither another run nor systemd removes it, whatever its age.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "cio_pipeline_spill_"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def spill_folder() -> Iterator[Path]:
    """Yields a folder that only its owner can read, and removes it after the block. First removes what killed runs have left.

    Raises `OSError` if the temporary folder cannot be written to; see `no_space`.
    """
    _remove_abandoned()
    folder, lock = _locked_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def no_space(error: BaseException) -> str | None:
    """Returns a sentence if the error means that the temporary folder is full or cannot be written to, else None."""
    if not isinstance(error, OSError):
        return None
    if error.errno in FULL:
        return f"The temporary folder {_temporary()} is full: free some space, or set TMPDIR to a folder with more."
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) or "No usable temporary directory" in str(error):
        return f"The temporary folder {_temporary()} cannot be written to: set TMPDIR to one that can."
    return None


def _temporary() -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        return os.environ.get("TMPDIR", "/tmp")  # noqa: S108 - only for the message


def _locked_folder() -> tuple[Path, int]:
    """A new folder and the lock on it. If the folder was removed before it was locked, another one is created."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _remove_abandoned() -> None:
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # it is locked, another user's, or just removed
            lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            finally:
                os.close(lock)
