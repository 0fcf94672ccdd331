"""Lists the folder or bucket of a batch export, and finds files that are not an export of events."""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from upath import UPath

from cio_pipeline.posthog.exports.names import parse_name
from cio_pipeline.posthog.source import NotExtracted
from cio_pipeline.storage_errors import explain

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az", "adl": "az"}
FIRST_LINE_BYTES = 1 << 20
TIMESTAMP_STEP = 3_000_000_000
"""In nanoseconds: the timestamps of the coarsest file systems have steps of two seconds."""

COLUMNS_OF_OTHER_MODELS = {"person_id", "session_id"}
"""PostHog also exports persons and sessions: they have these columns, but neither `uuid` nor `event`."""

Listing = tuple[dict[str, int | None], dict[str, str]]
"""The `sizes` and `stamps` of a `Folder`."""


@dataclass(frozen=True)
class Folder:
    """A folder at any fsspec URL, and the files in it and its subfolders when it was listed.

    filesystem: as fsspec gives it; sizes: in bytes, None if unknown; stamps: for files whose changes can be detected, a text
    that differs after each change.
    """

    filesystem: Any
    root: str
    sizes: dict[str, int | None]
    stamps: dict[str, str]

    @property
    def is_local(self) -> bool:
        """True if it is on this machine."""
        return isinstance(self.filesystem, LocalFileSystem)

    def name(self, path: str) -> str:
        """Returns the file's name for messages: without the address of the folder, which may contain credentials."""
        return path.removeprefix(self.root).lstrip("/") or PurePosixPath(path).name


def list_folder(url: str) -> Folder:
    """Lists the folder at this URL. Raises `NotExtracted` if it, or part of it, cannot be listed."""
    try:
        root = UPath(url)
        root.fs.invalidate_cache()
        is_local = isinstance(root.fs, LocalFileSystem)
        sizes, stamps = _list_local(root.path) if is_local else _list_remote(root.fs, root.path)
    except ImportError as error:
        extra = EXTRAS.get(urlsplit(url).scheme)
        install = f"pip install 'cio_pipeline[{extra}]'" if extra else str(error)
        raise NotExtracted(f"CIO_BATCH_EXPORT_URL needs a package that is not installed: {install}.") from None
    except Exception as error:  # each file system raises its own
        raise NotExtracted(f"CIO_BATCH_EXPORT_URL cannot be listed: {explain(error)}.") from None
    return Folder(root.fs, root.path, sizes, stamps)


def files_of_other_models(paths: Iterable[str], folder: Folder) -> list[str]:
    """Returns the files in folders of an export of persons or sessions.

    Folders whose names differ only in numbers, such as days, belong to one export, so only one of their files is read.
    """
    exports: dict[str, list[str]] = {}
    for path in sorted(paths):
        exports.setdefault(re.sub(r"\d+", "#", path.rpartition("/")[0]), []).append(path)
    return [path for export in exports.values() if _is_of_other_model(export, folder) for path in export]


def _list_remote(filesystem: Any, root: str) -> Listing:
    """The sizes and stamps of the files. Stamps are ETags, if the store has them: hashes of the content."""
    infos = {path: info for path, info in filesystem.find(root, detail=True).items() if info.get("type") != "directory"}
    tags = {path: info.get("ETag") or info.get("etag") for path, info in infos.items()}
    return {path: info.get("size") for path, info in infos.items()}, {path: str(tag) for path, tag in tags.items() if tag}


def _list_local(root: str) -> Listing:
    """Like `_list_remote`, but without fsspec, which would skip folders that it may not read.

    A stamp consists of the size and whatever else the system changes when a file is written. A file that was only just written
    has none, because its timestamps may stay the same if it is written again.
    """
    latest = time.time_ns() - TIMESTAMP_STEP
    stats = dict(_walk(root) if Path(root).is_dir() else ())
    if Path(root).is_file():
        stats[root] = Path(root).stat()
    stamps = {
        path: repr((file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns))
        for path, file in stats.items()
        if file and max(file.st_mtime_ns, file.st_ctime_ns) < latest
    }
    return {path: file.st_size if file else None for path, file in stats.items()}, stamps


def _walk(folder: str) -> Iterator[tuple[str, os.stat_result | None]]:
    """The files in a folder and its subfolders; None for a broken link. Raises `OSError` if one cannot be read."""
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                status = entry.stat()
            except OSError:
                if Path(entry.path).exists():
                    raise
                yield entry.path, None
                continue
            if stat.S_ISDIR(status.st_mode):
                yield from _walk(entry.path)
            else:
                yield entry.path, status


def _is_of_other_model(paths: list[str], folder: Folder) -> bool:
    for path in paths:
        try:
            names = _column_names(path, folder)
        except Exception:  # reported when the file is read
            return False
        if names:
            return bool(names & COLUMNS_OF_OTHER_MODELS) and not names & {"uuid", "event"}
    return False


def _column_names(path: str, folder: Folder) -> set[str]:
    """The names of a file's columns, in lower case; none if it is empty."""
    name = parse_name(path)
    with folder.filesystem.open(path, "rb") as file:
        if name is None or name.kind == "parquet":
            with pq.ParquetFile(file) as footer:
                return {column.lower() for column in footer.schema_arrow.names}
        with pa.input_stream(file, compression=name.codec) as stream:
            line = stream.read(FIRST_LINE_BYTES).split(b"\n")[0]
            return {key.lower() for key in json.loads(line)} if line.strip() else set()
