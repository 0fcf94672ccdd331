"""What can go wrong with files, in sentences; and files that only their owner can read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import pyarrow as pa
from upath import UPath

from cio_pipeline.errors import PipelineError
from cio_pipeline.storage_errors import refusal
from cio_pipeline.temporary_files import no_space, spill_folder


class StorageError(PipelineError):
    """Tables or temporary files cannot be written, or are not as they were written; the message is one sentence."""


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """As `spill_folder`; raises `StorageError` where none can be made."""
    with ExitStack() as open_folder:
        with keeping_temporary_rows("the temporary folder"):
            folder = open_folder.enter_context(spill_folder())
        yield folder


@contextmanager
def keeping_temporary_rows(where: Path | UPath | str) -> Iterator[None]:
    """Raises `StorageError` where temporary files cannot be written or are gone."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            no_space(error)
            or f"Temporary files in {where} cannot be used ({reason(error)}): look after what cleans it, and run this again."
        ) from None


@contextmanager
def writing(folder: UPath) -> Iterator[None]:
    """Raises `StorageError` where a folder of CIO_DATA_DIR cannot be written."""
    try:
        yield
    except errors_of(folder) as error:
        why = refusal(error) or reason(error)
        raise StorageError(f"The folder {folder} (CIO_DATA_DIR) cannot be written: {why}.") from None


def errors_of(path: UPath, *others: type[Exception]) -> tuple[type[Exception], ...]:
    """What it raises to read or write there, and others: the clients of buckets have errors of no common kind."""
    return (OSError, pa.ArrowException, *others) if path.protocol in ("", "file") else (Exception,)


def unreadable(what: str, error: BaseException, where: str, remedy: str) -> StorageError:
    """The error that says why `what` of CIO_DATA_DIR cannot be read. To make a file anew is the remedy only where the storage
    itself can be used."""
    if (why := refusal(error)) is not None:
        return StorageError(f"{what} (CIO_DATA_DIR) cannot be read: {why}.")
    return StorageError(f"{what} cannot be read ({where}{reason(error)}){remedy}")


def create(path: UPath) -> IO[bytes]:
    """A new file, on a local disk readable by its owner only, whatever the umask."""
    if path.protocol in ("", "file"):
        return os.fdopen(os.open(path.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
    opened: IO[bytes] = path.open("wb")
    return opened


def reason(error: BaseException) -> str:
    """Why, in the system's words; of other errors, which may quote what a row holds, their kind."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return type(error).__name__
