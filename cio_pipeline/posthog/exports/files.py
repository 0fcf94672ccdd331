"""A file of a batch export as tables of events, or a refusal that names the file and the cause."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from cio_pipeline.posthog.exports.folder import Folder
from cio_pipeline.posthog.exports.names import named
from cio_pipeline.posthog.exports.rows import Unreadable, Wanted, read_jsonlines, read_parquet, row_groups
from cio_pipeline.posthog.source import NotExtracted
from cio_pipeline.storage_errors import cause
from cio_pipeline.temporary_files import no_space, spill_folder

PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}


def events_in(path: str, folder: Folder, wanted: Wanted) -> Iterator[pa.Table]:
    """The wanted events of the file, in tables of `EVENT_SCHEMA`. Raises `NotExtracted`."""
    try:
        yield from _tables(path, folder, wanted)
    except Unreadable as wrong:
        raise NotExtracted(f"{folder.name(path)} cannot be read: {wrong}.") from None
    except Exception as error:  # every file system has its own
        raise NotExtracted(no_space(error) or f"{folder.name(path)} cannot be read: {cause(error)}.") from None


def check_is_parquet(file: IO[bytes]) -> None:
    """Raises `Unreadable`, saying what it is instead, where the file does not begin like Parquet."""
    start = file.read(64)
    file.seek(0)
    if start.startswith(b"PAR1"):
        return
    if not start:
        raise Unreadable("it is empty, as no Parquet file is: is the file whole? Copy it again")
    if start.startswith(b"PARE"):
        raise Unreadable("it is encrypted")
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise Unreadable("it is a web page or an error message, no export: copy it again")
    if packed := next((name for mark, name in PACKED.items() if start.startswith(mark)), None):
        raise Unreadable(f"it is not a Parquet file, but one that was packed with {packed}: unpack it")
    raise Unreadable("it is not a Parquet file, although its name says so")


def _tables(path: str, folder: Folder, wanted: Wanted) -> Iterator[pa.Table]:
    name, size = named(path), folder.sizes.get(path)
    with folder.files.open(path, "rb") as file:
        _check_size(file.seek(0, 2), size)
        file.seek(0)
        if name is not None and name.kind == "jsonl":
            yield from read_jsonlines(file, name.codec, wanted)
            _check_is_as_listed(path, folder)
            return
        check_is_parquet(file)
        with pq.ParquetFile(file) as footer:
            if not row_groups(footer, wanted):
                return
    with _here(path, folder) as local:
        yield from read_parquet(local, wanted)
    _check_is_as_listed(path, folder)


@contextmanager
def _here(path: str, folder: Folder) -> Iterator[str]:
    """A local copy of the file, since Parquet is not read from start to end, which is slow over a network."""
    if folder.is_local:
        yield path
        return
    with spill_folder() as spill:
        copy = spill / "copy.parquet"
        folder.files.get_file(path, str(copy))
        _check_size(copy.stat().st_size, folder.sizes.get(path))
        yield str(copy)


def _check_is_as_listed(path: str, folder: Folder) -> None:
    """A file that shrank while it was read may have ended early, without an error."""
    if folder.is_local:
        _check_size(folder.files.size(path), folder.sizes.get(path))


def _check_size(now: int, listed: int | None) -> None:
    if listed is not None and now != listed:
        raise Unreadable(
            f"it has {now:,} bytes, and had {listed:,} when the folder was listed: run the day again when it is whole"
        )
