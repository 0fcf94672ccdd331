"""Events from the files of a PostHog batch export, in a folder or at any fsspec URL.

A day is a day of event time, whereas the files of a run have what *landed* in its interval: up to seven days after it happened
or, if a clock is fast, up to one day before. So a day is read from the runs from one day before it to `late_days` after it.
What landed later is not found; PostHog itself never exports events that were more than seven days old when they landed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.posthog.exports.files import events_in
from cio_pipeline.posthog.exports.folder import Folder, listed, of_other_models
from cio_pipeline.posthog.exports.names import EXAMPLE
from cio_pipeline.posthog.exports.rows import Wanted, window_of
from cio_pipeline.posthog.exports.runs import (
    Run,
    counted_files,
    describe_gap,
    gaps,
    runs,
    strange,
    uncovered,
    unfinished,
    unnamed,
)
from cio_pipeline.posthog.source import HISTORY_EVENTS, EventStream, NotExtracted, NothingSoFar
from cio_pipeline.rules.dropped_set import AttributesFrom, reaches_back
from cio_pipeline.rules.values import EPOCH
from cio_pipeline.storage_errors import cause

logger = logging.getLogger(__name__)

EARLY = timedelta(days=1)
"""PostHog exports no event that is dated further ahead of its landing than this."""

NAMES_SHOWN = 5


class BatchExportSource:
    """The `batch_export` source: the files under `url`, with events that landed up to `late_days` days after their day."""

    def __init__(self, url: str, late_days: int, allowlist: tuple[str, ...], attributes_from: AttributesFrom) -> None:
        self._url, self._late = url, timedelta(days=late_days)
        self._allowlist, self._attributes_from = allowlist, attributes_from

    def check(self) -> None:
        """Raises `NotExtracted` if the folder cannot be listed, or contains no batch export."""
        self._listed()

    def events(self, start: datetime, end: datetime) -> EventStream:
        """The window's events.

        Raises `NotExtracted` if the export is not finished up to the window's end, has nothing from the window, or cannot be
        read.
        """
        folder, all_runs = self._listed()
        near = [_with_counted_files(run, folder) for run in all_runs if run.overlaps(start - EARLY, end + self._late)]
        far = [run for run in all_runs if not run.overlaps(start - EARLY, end + self._late)]
        for gap in gaps(near + far, start, end):
            logger.warning("%s", describe_gap(gap))
        wanted, files = Wanted(start, end, self._allowlist, self._attributes_from), _finished(near)
        return window_of(_read(files, folder, wanted), _fingerprint(files, folder, wanted))

    def readable_until(self, start: datetime, moment: datetime) -> datetime:
        """The end of the newest finished run. Raises `NothingSoFar` if that is not after `start`, as in a daily export."""
        folder, all_runs = self._listed()
        near = (_with_counted_files(run, folder) for run in all_runs if run.overlaps(start, moment))
        reach = max((run.end for run in near if run.finished), default=start)
        if reach <= start:
            raise NothingSoFar(
                f"The batch export has nothing of {start:%Y-%m-%d} yet, which is not over: only one that runs every hour, or"
                " more often, has."
            )
        return min(reach, moment)

    def history(self, before: datetime) -> EventStream:
        """All exported `$identify` and `$set` events before that time."""
        folder, all_runs = self._listed()
        early = [_with_counted_files(run, folder) for run in all_runs if run.start < before + self._late]
        uncovered(early, EPOCH, before)
        wanted = Wanted(EPOCH, before, HISTORY_EVENTS, self._attributes_from)
        tables = _read(_finished(early), folder, wanted)
        return window_of(table.filter(pc.is_in(table["event"], pa.array(HISTORY_EVENTS))) for table in tables)

    def _listed(self) -> tuple[Folder, list[Run]]:
        """The folder, and the runs of the export of events in it."""
        folder = listed(self._url)
        nameless, all_runs = unnamed(folder.sizes), runs(folder.sizes)
        if not all_runs:
            seen = f" It has {_names(nameless, folder)}." if nameless else ""
            raise NotExtracted(f"CIO_BATCH_EXPORT_URL holds no file of a PostHog batch export, named such as {EXAMPLE}.{seen}")
        if nameless:
            logger.info(
                "Ignored, because there is no interval in their names, as in %s: %s.", EXAMPLE, _names(nameless, folder)
            )
        others = of_other_models((path for run in all_runs for path in (*run.files, *run.parts)), folder)
        if others and (of_events := runs(set(folder.sizes) - set(others))):
            logger.info(
                "Ignored, because they are an export of persons or sessions, not of events: %s.", _names(others, folder)
            )
            return folder, of_events
        return folder, all_runs


def _read(files: list[str], folder: Folder, wanted: Wanted) -> Iterator[pa.Table]:
    for path in files:
        yield from events_in(path, folder, wanted)


def _fingerprint(files: list[str], folder: Folder, wanted: Wanted) -> str | None:
    """The fingerprint of the files and of what is wanted from them. None if a file may change unnoticed, or where what is
    read depends on today (R20)."""
    stamps = [(path, folder.stamps.get(path)) for path in files]
    if any(stamp is None for _, stamp in stamps) or reaches_back(wanted.start, datetime.now(UTC)):
        return None
    return sha256(repr((stamps, wanted)).encode()).hexdigest()


def _with_counted_files(run: Run, folder: Folder) -> Run:
    """The run with all of its files that count. An incomplete manifest counts as none yet.

    Raises `NotExtracted` if a file of the interval may belong to the run, but has an unknown name.
    """
    run, left = counted_files(run, _manifests(run, folder))
    if left:
        logger.info("Ignored, because the manifest of %s does not name them: %s.", run, _names(left, folder))
    if unclear := strange(run):
        names = _names(unclear, folder)
        if not run.finished:
            raise NotExtracted(f"{names} cannot be read: such a name is not understood. Name it as {EXAMPLE}, or move it away.")
        logger.warning("Ignored, because such a name is not understood: %s. Other files of %s are read.", names, run)
    return run


def _manifests(run: Run, folder: Folder) -> dict[str, list[str]]:
    """The run's complete manifests, and the names in each: a later run's may lie next to an earlier one's copy."""
    manifests = {path: _manifest(path, folder) for path in run.manifests}
    return {path: names for path, names in manifests.items() if names is not None}


def _manifest(path: str, folder: Folder) -> list[str] | None:
    try:
        text = folder.files.cat_file(path)
    except Exception as error:  # every file system has its own
        raise NotExtracted(f"{folder.name(path)} cannot be read: {cause(error)}.") from None
    try:
        names = json.loads(text)["files"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _finished(runs_read: list[Run]) -> list[str]:
    """The files of the finished runs; the unfinished ones are logged."""
    for run in runs_read:
        if not run.finished:
            logger.warning("%s What is only in it comes when the day is run again.", unfinished(run))
    return [path for run in runs_read if run.finished for path in run.files]


def _names(paths: Iterable[str], folder: Folder) -> str:
    """The first few of the files, and how many more there are."""
    names = [folder.name(path) for path in paths]
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
