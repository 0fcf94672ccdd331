"""Events out of the files of a PostHog batch export, in a folder or at any fsspec URL.

A day is a day of event time, while a run's files hold what *landed* in its interval: up to seven days after it happened, or up
to one day before, where a clock is fast. So a day is looked for in the runs from one day before it to `late_days` after it.
What landed later than that is not seen, nor what PostHog never exports: events more than seven days old when they landed.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from upath import UPath

from cio_pipeline.posthog.export_runs import EXAMPLE, Run, gaps, runs, told, uncovered, unfinished
from cio_pipeline.posthog.exported_rows import Unreadable, Wanted, on_disk, read_jsonlines, read_parquet, row_groups
from cio_pipeline.posthog.progress import EVERY_SECONDS
from cio_pipeline.posthog.source import EVER, HISTORY_EVENTS, NotExtracted, Say, Window, quietly
from cio_pipeline.spill import PREFIX

EARLY = timedelta(days=1)
"""PostHog exports no event that is dated further ahead of its landing."""

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az", "adl": "az"}
CODECS = {".gz": "gzip", ".br": "brotli"}


class BatchExportSource:
    """The `batch_export` source: the files under `url`, for events that landed up to `late_days` days after their day."""

    def __init__(self, url: str, late_days: int, allowlist: tuple[str, ...], with_person: bool) -> None:
        self._url, self._late = url, timedelta(days=late_days)
        self._allowlist, self._with_person = allowlist, with_person

    def check(self, say: Say = quietly) -> None:  # noqa: ARG002 - there is nothing to wait for
        """Raises `NotExtracted` where the folder cannot be listed, or holds no batch export."""
        self._listed()

    def events(self, start: datetime, end: datetime, say: Say) -> Window:
        """The window's events; all files are read when this returns.

        Raises `NotExtracted` where the export is not finished up to the window's end, has nothing of it, or cannot be read.
        """
        files, found = self._listed()
        near = [_settled(run, files) for run in found if run.overlaps(start - EARLY, end + self._late)]
        far = [run for run in found if not run.overlaps(start - EARLY, end + self._late)]
        for gap in gaps(near + far, start, end):
            say(told(gap))
        wanted = Wanted(start, end, self._allowlist, self._with_person)
        return on_disk(_read(_finished(near, say), files, wanted, say))

    def history(self, before: datetime, say: Say) -> Window:
        """All `$identify` and `$set` events before that time that were exported."""
        files, found = self._listed()
        early = [_settled(run, files) for run in found if run.start < before + self._late]
        uncovered(early, EVER, before)
        tables = _read(_finished(early, say), files, Wanted(EVER, before, HISTORY_EVENTS, self._with_person), say)
        return on_disk(table.filter(pc.is_in(table["event"], pa.array(HISTORY_EVENTS))) for table in tables)

    def _listed(self) -> tuple[Any, list[Run]]:
        """The file system, and the runs of the export in it."""
        try:
            root = UPath(self._url)
            files = root.fs
            files.invalidate_cache()
            found = runs(files.find(root.path))
        except ImportError as missing:
            extra = EXTRAS.get(urlsplit(self._url).scheme)
            install = f"pip install 'cio_pipeline[{extra}]'" if extra else str(missing)
            raise NotExtracted(f"CIO_BATCH_EXPORT_URL needs a package that is not installed: {install}.") from missing
        except Exception as trouble:  # every file system has its own
            raise NotExtracted(f"CIO_BATCH_EXPORT_URL cannot be listed ({type(trouble).__name__}).") from trouble
        if not found:
            raise NotExtracted(f"CIO_BATCH_EXPORT_URL holds no file of a PostHog batch export, named such as {EXAMPLE}.")
        return files, found


def _read(found: list[Run], files: Any, wanted: Wanted, say: Say) -> Iterator[pa.Table]:
    rows, said = 0, time.monotonic()
    for number, run in enumerate(found, 1):
        for path in run.files:
            for table in _file(path, files, wanted):
                rows += len(table)
                yield table
        if number == len(found) or time.monotonic() - said >= EVERY_SECONDS:
            said = time.monotonic()
            say(f"Before {wanted.end:%Y-%m-%d}: {number:,} of {len(found):,} runs of the batch export read, {rows:,} events.")


def _file(path: str, files: Any, wanted: Wanted) -> Iterator[pa.Table]:
    try:
        yield from _tables(path, files, wanted)
    except Unreadable as wrong:
        raise NotExtracted(f"{path} cannot be read: {wrong}.") from wrong
    except Exception as trouble:  # every file system has its own
        raise NotExtracted(f"{path} cannot be read ({type(trouble).__name__}): is the file whole?") from trouble


def _settled(run: Run, files: Any) -> Run:
    """The run with the files that its manifest names; with a manifest that is not whole it is as if it had none yet."""
    if run.manifest is None:
        return run
    try:
        text = files.cat_file(run.manifest)
    except Exception as trouble:  # every file system has its own
        raise NotExtracted(f"{run.manifest} cannot be read ({type(trouble).__name__}).") from trouble
    try:
        keys = json.loads(text)["files"]
        return replace(run, files=[str(PurePosixPath(run.manifest).parent / PurePosixPath(key).name) for key in keys])
    except (ValueError, KeyError, TypeError):
        return replace(run, manifest=None)


def _finished(found: list[Run], say: Say) -> list[Run]:
    for run in found:
        if not run.finished:
            say(f"{unfinished(run)} What is only in it comes when the day is run again.")
    return [run for run in found if run.finished]


def _tables(path: str, files: Any, wanted: Wanted) -> Iterator[pa.Table]:
    with files.open(path, "rb") as file:
        if ".jsonl" in PurePosixPath(path).suffixes:
            yield from read_jsonlines(file, CODECS.get(PurePosixPath(path).suffix), wanted)
            return
        with pq.ParquetFile(file) as footer:
            if not row_groups(footer, wanted):
                return
    with _here(path, files) as local:
        yield from read_parquet(local, wanted)


@contextmanager
def _here(path: str, files: Any) -> Iterator[str]:
    """The file on this machine: Parquet is read here and there, which is slow over a network."""
    if isinstance(files, LocalFileSystem):
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix=PREFIX) as copy:
        files.get_file(path, copy.name)
        yield copy.name
