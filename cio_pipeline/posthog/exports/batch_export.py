"""Events from the files of a PostHog batch export, in a folder or at any fsspec URL.

A day consists of events that happened on it, whereas a run's files have the events that *landed* in its interval: up to seven
days after they happened or, if a clock is fast, up to one day before. So a day is read from the runs from one day before it to
`late_days` after it. What landed later is not found, but PostHog never exports events that were more than seven days old when
they landed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Iterable
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.posthog.exports.event_filter import EventFilter
from cio_pipeline.posthog.exports.event_stream import EARLY, event_stream
from cio_pipeline.posthog.exports.files import read_events
from cio_pipeline.posthog.exports.folder import Folder, files_of_other_models, list_folder
from cio_pipeline.posthog.exports.names import EXAMPLE
from cio_pipeline.posthog.exports.read_ahead import read_ahead
from cio_pipeline.posthog.exports.runs import (
    Run,
    apply_manifests,
    check_coverage,
    describe_gap,
    describe_unfinished,
    find_gaps,
    group_by_run,
    with_unknown_names,
    without_interval,
)
from cio_pipeline.posthog.source import HISTORY_EVENTS, EventStream, NotExtracted, NothingSoFar
from cio_pipeline.rules.dropped_set import reaches_back
from cio_pipeline.rules.options import AttributesFrom
from cio_pipeline.rules.values import EPOCH
from cio_pipeline.storage_errors import explain

logger = logging.getLogger(__name__)

NAMES_SHOWN = 5


class BatchExportSource:
    """The `batch_export` source: the files under `url`, with events that landed up to `late_days` days after their day."""

    def __init__(self, url: str, late_days: int, allowlist: tuple[str, ...], attributes_from: AttributesFrom) -> None:
        self._url, self._late = url, timedelta(days=late_days)
        self._allowlist, self._attributes_from = allowlist, attributes_from

    def check(self) -> None:
        """Raises `NotExtracted` if the folder cannot be listed, or contains no batch export."""
        self._list_runs()

    def events(self, start: datetime, end: datetime) -> EventStream:
        """Returns the events of a time window.

        Raises `NotExtracted` if the export is not finished up to the window's end, has nothing from the window, or cannot be
        read.
        """
        folder, all_runs = self._list_runs()
        near = [_with_all_files(run, folder) for run in all_runs if run.overlaps(start - EARLY, end + self._late)]
        far = [run for run in all_runs if not run.overlaps(start - EARLY, end + self._late)]
        for gap in check_coverage(near + far, start, end):
            logger.warning("%s", describe_gap(gap))
        event_filter = EventFilter(start, end, self._allowlist, self._attributes_from)
        files = _finished_files(near)
        return event_stream(_read(files, folder, event_filter), _fingerprint(files, folder, event_filter))

    def readable_until(self, start: datetime, moment: datetime) -> datetime:
        """Returns the end of the newest finished run, at most `moment`. Raises `NothingSoFar` if that is not after `start`, as
        in a daily export."""
        folder, all_runs = self._list_runs()
        near = (_with_all_files(run, folder) for run in all_runs if run.overlaps(start, moment))
        latest = max((run.end for run in near if run.is_finished), default=start)
        if latest <= start:
            raise NothingSoFar(
                f"The batch export has nothing of {start:%Y-%m-%d} yet, which is not over: only one that runs every hour, or"
                " more often, has."
            )
        return min(latest, moment)

    def history(self, before: datetime) -> EventStream:
        """Returns all exported `$identify` and `$set` events before that time."""
        folder, all_runs = self._list_runs()
        early = [_with_all_files(run, folder) for run in all_runs if run.start < before + self._late]
        find_gaps(early, EPOCH, before)  # raises an error if one of the runs is unfinished
        event_filter = EventFilter(EPOCH, before, HISTORY_EVENTS, self._attributes_from)
        tables = _read(_finished_files(early), folder, event_filter)
        return event_stream(table.filter(pc.is_in(table["event"], pa.array(HISTORY_EVENTS))) for table in tables)

    def _list_runs(self) -> tuple[Folder, list[Run]]:
        """The folder, and the runs in it that exported events."""
        folder = list_folder(self._url)
        unknown, all_runs = without_interval(folder.sizes), group_by_run(folder.sizes)
        if not all_runs:
            found = f" It has {_names(unknown, folder)}." if unknown else ""
            raise NotExtracted(
                f"CIO_BATCH_EXPORT_URL contains no file of a PostHog batch export, with a name such as {EXAMPLE}.{found}"
            )
        if unknown:
            logger.info("Ignored, because their names have no interval, as %s has: %s.", EXAMPLE, _names(unknown, folder))
        others = files_of_other_models((path for run in all_runs for path in (*run.files, *run.parts)), folder)
        if others and (of_events := group_by_run(set(folder.sizes) - set(others))):
            logger.info(
                "Ignored, because they are an export of persons or sessions, not of events: %s.", _names(others, folder)
            )
            return folder, of_events
        return folder, all_runs


def _read(files: list[str], folder: Folder, event_filter: EventFilter) -> Generator[pa.Table, None, None]:
    return read_ahead(read_events(path, folder, event_filter) for path in files)


def _fingerprint(files: list[str], folder: Folder, event_filter: EventFilter) -> str | None:
    """A hash of the files' stamps and the filter. None if a file may change unnoticed, or if what is read depends on today's
    date (R20)."""
    stamps = [(path, folder.stamps.get(path)) for path in files]
    if any(stamp is None for _, stamp in stamps) or reaches_back(event_filter.start, datetime.now(UTC)):
        return None
    return sha256(repr((stamps, event_filter)).encode()).hexdigest()


def _with_all_files(run: Run, folder: Folder) -> Run:
    """The run with all of its files that count. A manifest that is incomplete is ignored until it is complete.

    Raises `NotExtracted` if a file of the interval has an unknown name, and may belong to the run.
    """
    run, left = apply_manifests(run, _complete_manifests(run, folder))
    if left:
        logger.info("Ignored, because the manifest of %s does not list them: %s.", run, _names(left, folder))
    if unknown := with_unknown_names(run):
        names = _names(unknown, folder)
        if not run.is_finished:
            remedy = f"Rename it as in {EXAMPLE}, or move it away."
            raise NotExtracted(f"{names} cannot be read: a batch export has no such name. {remedy}")
        logger.warning("Ignored, because a batch export has no such name: %s. Other files of %s are read.", names, run)
    return run


def _complete_manifests(run: Run, folder: Folder) -> dict[str, list[str]]:
    """The names in each complete manifest of the run: there may be several, if a later run or a copy has added one."""
    manifests = {path: _read_manifest(path, folder) for path in run.manifests}
    return {path: names for path, names in manifests.items() if names is not None}


def _read_manifest(path: str, folder: Folder) -> list[str] | None:
    """The names in a manifest, or None if it is incomplete."""
    try:
        text = folder.filesystem.cat_file(path)
    except Exception as error:  # each file system raises its own
        raise NotExtracted(f"{folder.name(path)} cannot be read: {explain(error)}.") from None
    try:
        names = json.loads(text)["files"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _finished_files(runs: list[Run]) -> list[str]:
    """The files of the finished runs. Unfinished ones are logged."""
    for run in runs:
        if not run.is_finished:
            logger.warning("%s Events that are only in it are read when the day is run again.", describe_unfinished(run))
    return [path for run in runs if run.is_finished for path in run.files]


def _names(paths: Iterable[str], folder: Folder) -> str:
    """The first few names, and how many more there are."""
    names = [folder.name(path) for path in paths]
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
