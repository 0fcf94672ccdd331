"""What can go wrong with files, in sentences; and files that only their owner can read."""

from __future__ import annotations

import os
import resource
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import pyarrow as pa
from upath import UPath

from cio_pipeline.errors import PipelineError
from cio_pipeline.storage_errors import refusal
from cio_pipeline.temporary_files import no_space, spill_folder

OPEN_FILES = 10_000


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


def is_local(path: UPath) -> bool:
    """Whether it is on this machine's file system, rather than in a bucket."""
    return path.protocol in ("", "file")


def place(url: str) -> UPath:
    """The folder or bucket of CIO_DATA_DIR. What is in a bucket is asked each time: other machines write there, too, and a
    listing that fsspec remembers does not show it."""
    path = UPath(url)
    return path if is_local(path) else UPath(url, use_listings_cache=False)


def errors_of(path: UPath, *others: type[Exception]) -> tuple[type[Exception], ...]:
    """What it raises to read or write there, and others: the clients of buckets have errors of no common kind."""
    return (OSError, pa.ArrowException, *others) if is_local(path) else (Exception,)


def unreadable(what: str, error: BaseException, where: str, remedy: str) -> StorageError:
    """The error that says why `what` of CIO_DATA_DIR cannot be read. To make a file anew is the remedy only where the storage
    itself can be used."""
    if (why := refusal(error)) is not None:
        return StorageError(f"{what} (CIO_DATA_DIR) cannot be read: {why}.")
    return StorageError(f"{what} cannot be read ({where}{reason(error)}){remedy}")


def create(path: UPath) -> IO[bytes]:
    """A new file, on a local disk readable by its owner only, whatever the umask."""
    if is_local(path):
        return os.fdopen(os.open(path.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
    opened: IO[bytes] = path.open("wb")
    return opened


def make_folder(path: UPath) -> None:
    """Makes the folder and those above it where they are not there; a bucket has none."""
    if is_local(path):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)


def read_file(path: UPath) -> bytes | None:
    """What a small file holds, as one state of it; None where there is none. Raises where there is no bucket."""
    try:
        content: bytes = path.read_bytes() if is_local(path) else path.fs.cat_file(path.path)
    except FileNotFoundError as error:
        if refusal(error) is not None:
            raise
        return None
    return content


def replace_file(path: UPath, content: bytes) -> None:
    """Puts a small file in the place of one: whoever reads it meanwhile finds the one or the other, whole.

    A bucket takes a file as a whole or not at all; on a disk a finished file is renamed.
    """
    if not is_local(path):
        path.fs.pipe_file(path.path, content)
        return
    written = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        with create(written) as file:
            file.write(content)
        written.rename(path)
    except BaseException:
        with suppress(OSError):
            written.unlink()
        raise


def reason(error: BaseException) -> str:
    """Why, in the system's words; of other errors, which may quote what a row holds, their kind."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return type(error).__name__


def keep_private() -> None:
    """What this process writes from here on is readable by its owner only."""
    os.umask(0o077)


def allow_open_files() -> None:
    """Lets this process have a file open for each shard of a large day's tables: often only 1,024 may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
