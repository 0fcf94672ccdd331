"""Files of CIO_DATA_DIR and temporary files: their errors as sentences, and readable by their owner only."""

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
from cio_pipeline.storage_errors import problem_of_storage
from cio_pipeline.temporary_files import no_space, spill_folder

OPEN_FILES = 10_000


class StorageError(PipelineError):
    """Tables or temporary files cannot be written or read, or are not as they were written; the message is one sentence."""


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A `spill_folder` whose errors are `StorageError`."""
    with ExitStack() as open_folder:
        with temporary_file_errors("the temporary folder"):
            folder = open_folder.enter_context(spill_folder())
        yield folder


@contextmanager
def temporary_file_errors(where: Path | UPath | str) -> Iterator[None]:
    """Turns errors of temporary files, which cannot be written or are gone, into `StorageError`."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            no_space(error)
            or f"Temporary files in {where} cannot be used ({reason(error)}): check what deletes files there, and run this"
            " again."
        ) from None


@contextmanager
def writing(folder: UPath) -> Iterator[None]:
    """Turns errors of writing to a folder of CIO_DATA_DIR into `StorageError`."""
    try:
        yield
    except errors_of(folder) as error:
        why = problem_of_storage(error) or reason(error)
        raise StorageError(f"The folder {folder} (CIO_DATA_DIR) cannot be written: {why}.") from None


def is_local(path: UPath) -> bool:
    """Returns whether it is in this machine's file system, and not in a bucket."""
    return path.protocol in ("", "file")


def data_path(url: str) -> UPath:
    """Returns the folder or bucket of CIO_DATA_DIR. A bucket is listed each time, because other machines write there, too, and
    fsspec's cached listings would not show it."""
    path = UPath(url)
    return path if is_local(path) else UPath(url, use_listings_cache=False)


def errors_of(path: UPath, *others: type[Exception]) -> tuple[type[Exception], ...]:
    """Returns the errors of reading or writing there, and `others`. The clients of buckets have no common base class for
    theirs."""
    return (OSError, pa.ArrowException, *others) if is_local(path) else (Exception,)


def unreadable(what: str, error: BaseException, where: str, remedy: str) -> StorageError:
    """Returns the error that says why `what` of CIO_DATA_DIR cannot be read. The remedy, which writes the file again, is given
    only if the storage itself can be used."""
    if (why := problem_of_storage(error)) is not None:
        return StorageError(f"{what} (CIO_DATA_DIR) cannot be read: {why}.")
    return StorageError(f"{what} cannot be read ({where}{reason(error)}){remedy}")


def create(path: UPath) -> IO[bytes]:
    """Creates a file; on a local disk it is readable by its owner only, whatever the umask."""
    if is_local(path):
        return os.fdopen(os.open(path.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
    opened: IO[bytes] = path.open("wb")
    return opened


def make_folder(path: UPath) -> None:
    """Creates the folder and its parents if they do not exist. A bucket has no folders."""
    if is_local(path):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)


def read_file(path: UPath) -> bytes | None:
    """Returns the content of a small file, consistent even while it is replaced; None if there is no file. Raises if there is
    no bucket."""
    try:
        content: bytes = path.read_bytes() if is_local(path) else path.fs.cat_file(path.path)
    except FileNotFoundError as error:
        if problem_of_storage(error) is not None:
            raise
        return None
    return content


def replace_file(path: UPath, content: bytes) -> None:
    """Replaces a small file atomically: readers find the old content or the new, never a part.

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
    """Returns the reason in the system's words; of other errors, which may quote rows, only the class."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return type(error).__name__


def keep_private() -> None:
    """Makes what this process writes from now on readable by its owner only."""
    os.umask(0o077)


def allow_open_files() -> None:
    """Allows this process an open file for each shard of a large day's tables; the default is often 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
