"""Events out of the files of a PostHog batch export, in a folder or at any fsspec URL.

A day is a day of event time, while a run's files hold what *landed* in its interval: up to seven days after it happened, or up
to one day before, where a clock is fast. So a day is looked for in the runs from one day before it to `late_days` after it.
What landed later than that is not seen, nor what PostHog never exports: events more than seven days old when they landed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.posthog.exports.files import events_in
from cio_pipeline.posthog.exports.folder import Folder, listed, of_other_models
from cio_pipeline.posthog.exports.names import EXAMPLE
from cio_pipeline.posthog.exports.rows import Wanted, window_of
from cio_pipeline.posthog.exports.runs import Run, describe_gap, gaps, runs, settled, strange, uncovered, unfinished, unnamed
from cio_pipeline.posthog.exports.storage_errors import cause
from cio_pipeline.posthog.progress import EVERY_SECONDS
from cio_pipeline.posthog.source import EVER, HISTORY_EVENTS, AttributesFrom, NotExtracted, Say, Window, quietly

EARLY = timedelta(days=1)
"""PostHog exports no event that is dated further ahead of its landing."""

NAMES_TOLD = 5


class BatchExportSource:
    """The `batch_export` source: the files under `url`, for events that landed up to `late_days` days after their day."""

    def __init__(self, url: str, late_days: int, allowlist: tuple[str, ...], attributes_from: AttributesFrom) -> None:
        self._url, self._late = url, timedelta(days=late_days)
        self._allowlist, self._attributes_from = allowlist, attributes_from

    def check(self, say: Say = quietly) -> None:
        """Raises `NotExtracted` where the folder cannot be listed, or holds no batch export."""
        self._listed(say)

    def events(self, start: datetime, end: datetime, say: Say) -> Window:
        """The window's events; all files are read when this returns.

        Raises `NotExtracted` where the export is not finished up to the window's end, has nothing of it, or cannot be read.
        """
        folder, found = self._listed(say)
        near = [_settled(run, folder, say) for run in found if run.overlaps(start - EARLY, end + self._late)]
        far = [run for run in found if not run.overlaps(start - EARLY, end + self._late)]
        for gap in gaps(near + far, start, end):
            say(describe_gap(gap))
        wanted = Wanted(start, end, self._allowlist, self._attributes_from)
        return window_of(_read(_finished(near, say), folder, wanted, say))

    def history(self, before: datetime, say: Say) -> Window:
        """All `$identify` and `$set` events before that time that were exported."""
        folder, found = self._listed(say)
        early = [_settled(run, folder, say) for run in found if run.start < before + self._late]
        uncovered(early, EVER, before)
        wanted = Wanted(EVER, before, HISTORY_EVENTS, self._attributes_from)
        tables = _read(_finished(early, say), folder, wanted, say)
        return window_of(table.filter(pc.is_in(table["event"], pa.array(HISTORY_EVENTS))) for table in tables)

    def _listed(self, say: Say) -> tuple[Folder, list[Run]]:
        """The folder, and the runs of the events' export in it."""
        folder = listed(self._url)
        nameless, found = unnamed(folder.sizes), runs(folder.sizes)
        if not found:
            seen = f" It has {_names(nameless, folder)}." if nameless else ""
            raise NotExtracted(f"CIO_BATCH_EXPORT_URL holds no file of a PostHog batch export, named such as {EXAMPLE}.{seen}")
        if nameless:
            say(f"Left aside, for no interval is in their names, as in {EXAMPLE}: {_names(nameless, folder)}.")
        others = of_other_models((path for run in found for path in (*run.files, *run.parts)), folder)
        of_events = runs(set(folder.sizes) - set(others))
        if others and of_events:
            say(f"Left aside, for they are an export of persons or sessions, not of events: {_names(others, folder)}.")
        return folder, of_events or found


def _read(found: list[Run], folder: Folder, wanted: Wanted, say: Say) -> Iterator[pa.Table]:
    rows, said = 0, time.monotonic()
    for number, run in enumerate(found, 1):
        for path in run.files:
            for table in events_in(path, folder, wanted):
                rows += len(table)
                yield table
        if number == len(found) or time.monotonic() - said >= EVERY_SECONDS:
            said = time.monotonic()
            say(f"Before {wanted.end:%Y-%m-%d}: {number:,} of {len(found):,} runs of the batch export read, {rows:,} events.")


def _settled(run: Run, folder: Folder, say: Say) -> Run:
    """The run with all of its files that count; with a manifest that is not whole it is as if it had none yet.

    Raises `NotExtracted` where a file of the interval may be one of the run's, but its name is none that is understood.
    """
    run, left = settled(run, _manifest(run, folder))
    if left:
        say(f"Left aside, for the manifest of {run} does not name them: {_names(left, folder)}.")
    if unclear := strange(run):
        names = _names(unclear, folder)
        if not run.finished:
            raise NotExtracted(f"{names} cannot be read: such a name is not understood. Name it as {EXAMPLE}, or move it away.")
        say(f"Left aside, for such a name is not understood: {names}. Other files of {run} are read.")
    return run


def _manifest(run: Run, folder: Folder) -> list[str] | None:
    if run.manifest is None:
        return None
    try:
        text = folder.files.cat_file(run.manifest)
    except Exception as trouble:  # every file system has its own
        raise NotExtracted(f"{folder.name(run.manifest)} cannot be read: {cause(trouble)}.") from None
    try:
        names = json.loads(text)["files"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _finished(found: list[Run], say: Say) -> list[Run]:
    for run in found:
        if not run.finished:
            say(f"{unfinished(run)} What is only in it comes when the day is run again.")
    return [run for run in found if run.finished]


def _names(paths: Iterable[str], folder: Folder) -> str:
    """The first few of the files, and how many more there are."""
    names = [folder.name(path) for path in paths]
    more = f" and {len(names) - NAMES_TOLD} more" if len(names) > NAMES_TOLD else ""
    return ", ".join(names[:NAMES_TOLD]) + more
