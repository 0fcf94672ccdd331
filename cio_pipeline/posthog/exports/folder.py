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

from cio_pipeline.posthog.exports.names import named
from cio_pipeline.posthog.source import NotExtracted
from cio_pipeline.storage_errors import cause

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az", "adl": "az"}
FIRST_LINE_BYTES = 1 << 20
STEP_OF_THE_CLOCK = 3_000_000_000
"""In nanoseconds: the clocks of the coarsest file systems have steps of two seconds."""

OTHER_MODELS = {"person_id", "session_id"}
"""PostHog also exports persons and sessions: they have these columns, but neither `uuid` nor `event`."""


Listed = tuple[dict[str, int | None], dict[str, str]]


@dataclass(frozen=True)
class Folder:
    """A folder at any fsspec URL, and the files in it and its subfolders when it was listed.

    sizes: in bytes, if known; stamps: for files whose changes can be detected, a text that differs after each change.
    """

    files: Any
    root: str
    sizes: dict[str, int | None]
    stamps: dict[str, str]

    @property
    def is_local(self) -> bool:
        """True if it is on this machine."""
        return isinstance(self.files, LocalFileSystem)

    def name(self, path: str) -> str:
        """Returns the file's name for messages: without the address of the folder, which may contain credentials."""
        return path.removeprefix(self.root).lstrip("/") or PurePosixPath(path).name


def listed(url: str) -> Folder:
    """Lists the folder at this URL. Raises `NotExtracted` if it, or part of it, cannot be listed."""
    try:
        root = UPath(url)
        files = root.fs
        files.invalidate_cache()
        sizes, stamps = _local(root.path) if isinstance(files, LocalFileSystem) else _remote(files, root.path)
    except ImportError as missing:
        extra = EXTRAS.get(urlsplit(url).scheme)
        install = f"pip install 'cio_pipeline[{extra}]'" if extra else str(missing)
        raise NotExtracted(f"CIO_BATCH_EXPORT_URL needs a package that is not installed: {install}.") from None
    except Exception as error:  # each file system raises its own
        raise NotExtracted(f"CIO_BATCH_EXPORT_URL cannot be listed: {cause(error)}.") from None
    return Folder(files, root.path, sizes, stamps)


def of_other_models(paths: Iterable[str], folder: Folder) -> list[str]:
    """Returns the files in folders of an export of persons or sessions.

    Folders whose names differ only in numbers, such as days, belong to one export, so only one of their files is read.
    """
    kinds: dict[str, list[str]] = {}
    for path in sorted(paths):
        kinds.setdefault(re.sub(r"\d+", "#", path.rpartition("/")[0]), []).append(path)
    return [path for kind in kinds.values() if _is_of_other_model(kind, folder) for path in kind]


def _remote(files: Any, root: str) -> Listed:
    """The sizes and stamps of the files. Stamps are ETags, if the store has them: hashes of the content."""
    infos = {path: info for path, info in files.find(root, detail=True).items() if info.get("type") != "directory"}
    tags = {path: info.get("ETag") or info.get("etag") for path, info in infos.items()}
    return {path: info.get("size") for path, info in infos.items()}, {path: str(tag) for path, tag in tags.items() if tag}


def _local(root: str) -> Listed:
    """Like `_remote`, but without fsspec, which would skip folders that it may not read.

    A stamp consists of the size and whatever else the system changes when a file is written. As its clock has steps, a file
    that was just written has none.
    """
    settled = time.time_ns() - STEP_OF_THE_CLOCK
    stats = dict(_below(root) if Path(root).is_dir() else ())
    if Path(root).is_file():
        stats[root] = Path(root).stat()
    stamps = {
        path: repr((file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns))
        for path, file in stats.items()
        if file and max(file.st_mtime_ns, file.st_ctime_ns) < settled
    }
    return {path: file.st_size if file else None for path, file in stats.items()}, stamps


def _below(folder: str) -> Iterator[tuple[str, os.stat_result | None]]:
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
                yield from _below(entry.path)
            else:
                yield entry.path, status


def _is_of_other_model(paths: list[str], folder: Folder) -> bool:
    for path in paths:
        try:
            names = _columns(path, folder)
        except Exception:  # reported when the file is read
            return False
        if names:
            return bool(names & OTHER_MODELS) and not names & {"uuid", "event"}
    return False


def _columns(path: str, folder: Folder) -> set[str]:
    """The names of a file's columns, in lower case; none if it is empty."""
    name = named(path)
    with folder.files.open(path, "rb") as file:
        if name is None or name.kind == "parquet":
            with pq.ParquetFile(file) as footer:
                return {column.lower() for column in footer.schema_arrow.names}
        with pa.input_stream(file, compression=name.codec) as stream:
            line = stream.read(FIRST_LINE_BYTES).split(b"\n")[0]
            return {key.lower() for key in json.loads(line)} if line.strip() else set()
