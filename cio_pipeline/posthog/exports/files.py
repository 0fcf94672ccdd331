"""Reads the events in a file of a batch export. Errors name the file and the cause."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from cio_pipeline.posthog.exports.columns import UnreadableFile
from cio_pipeline.posthog.exports.event_filter import EventFilter
from cio_pipeline.posthog.exports.folder import Folder
from cio_pipeline.posthog.exports.jsonlines import MAGIC_NUMBERS, read_jsonlines
from cio_pipeline.posthog.exports.names import parse_name
from cio_pipeline.posthog.exports.parquet import matching_row_groups, read_parquet
from cio_pipeline.posthog.source import NotExtracted
from cio_pipeline.storage_errors import explain
from cio_pipeline.temporary_files import no_space, spill_folder


def read_events(path: str, folder: Folder, event_filter: EventFilter) -> Generator[pa.Table, None, None]:
    """Yields the file's events that the filter selects, in tables of `EVENT_SCHEMA`. Raises `NotExtracted`."""
    try:
        yield from _read(path, folder, event_filter)
    except UnreadableFile as error:
        raise NotExtracted(f"{folder.name(path)} cannot be read: {error}.") from None
    except Exception as error:  # each file system raises its own
        raise NotExtracted(no_space(error) or f"{folder.name(path)} cannot be read: {explain(error)}.") from None


def _read(path: str, folder: Folder, event_filter: EventFilter) -> Iterator[pa.Table]:
    name = parse_name(path)
    with folder.filesystem.open(path, "rb") as file:
        _check_size(file.seek(0, 2), path, folder)
        file.seek(0)
        if name is not None and name.kind == "jsonl":
            yield from read_jsonlines(file, name.codec, event_filter)
            _check_is_unchanged(path, folder)
            return
        _check_is_parquet(file)
        with pq.ParquetFile(file) as footer:
            if not matching_row_groups(footer, event_filter):
                return
    with _local_file(path, folder) as local:
        yield from read_parquet(local, event_filter)
    _check_is_unchanged(path, folder)


def _check_is_parquet(file: IO[bytes]) -> None:
    """Raises `UnreadableFile`, which says what the file is instead, if it does not begin like Parquet."""
    start = file.read(64)
    file.seek(0)
    if start.startswith(b"PAR1"):
        return
    if not start:
        raise UnreadableFile("it is empty, which a Parquet file never is: is the file complete? Copy it again")
    if start.startswith(b"PARE"):
        raise UnreadableFile("it is encrypted")
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise UnreadableFile("it is a web page or an error message, not an export: copy it again")
    if codec := next((name for magic, name in MAGIC_NUMBERS.items() if start.startswith(magic)), None):
        raise UnreadableFile(f"it is not a Parquet file, but was compressed with {codec}: decompress it")
    raise UnreadableFile("it is not a Parquet file, although its name says so")


@contextmanager
def _local_file(path: str, folder: Folder) -> Iterator[str]:
    """The path of the file or of a local copy: Parquet is not read from start to end, which is slow over a network."""
    if folder.is_local:
        yield path
        return
    with spill_folder() as spill:
        copy = spill / "copy.parquet"
        folder.filesystem.get_file(path, str(copy))
        _check_size(copy.stat().st_size, path, folder)
        yield str(copy)


def _check_is_unchanged(path: str, folder: Folder) -> None:
    """A file that shrank while it was read may have ended early without an error."""
    if folder.is_local:
        _check_size(folder.filesystem.size(path), path, folder)


def _check_size(size: int, path: str, folder: Folder) -> None:
    listed = folder.sizes.get(path)
    if listed is not None and size != listed:
        raise UnreadableFile(
            f"it has {size:,} bytes, but had {listed:,} when the folder was listed: run the day again when it is complete"
        )
