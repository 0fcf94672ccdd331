"""Events from PostHog Cloud's on-demand exports (`file_download_batch_exports`).

A day consists of events that happened on it, whereas PostHog selects events by when they landed. So the export is requested
from one day before the day, as clocks may be fast, to `late_days` after it, as far as that is past. PostHog bills exported
rows, so a completed export is used again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pyarrow as pa
from upath import UPath

from cio_pipeline.posthog.client import Api
from cio_pipeline.posthog.exports.answers import export_error_for
from cio_pipeline.posthog.exports.columns import UnreadableFile
from cio_pipeline.posthog.exports.event_filter import EventFilter
from cio_pipeline.posthog.exports.event_stream import EARLY, event_stream
from cio_pipeline.posthog.exports.file_exports import PATH, FileExports
from cio_pipeline.posthog.exports.parquet import read_parquet
from cio_pipeline.posthog.query import QuerySource
from cio_pipeline.posthog.source import EventStream, NotExtracted, NothingSoFar
from cio_pipeline.rules.options import AttributesFrom
from cio_pipeline.storage_errors import explain
from cio_pipeline.temporary_files import no_space, spill_folder

logger = logging.getLogger(__name__)

LONGEST_EXPORT = timedelta(weeks=1)

CLOCKS_DIFFER = timedelta(minutes=1)
"""PostHog refuses an export that ends in the future by its own clock."""

FOLDER = "file_downloads"
"""The folder in CIO_DATA_DIR with the paths of requested exports in PostHog's API."""


class FileDownloadSource:
    """The `file_download` source: exports of at most a week each, with events that landed up to `late_days` days later."""

    def __init__(
        self,
        url: str,
        project_id: str,
        api_key: str,
        *,
        late_days: int,
        allowlist: tuple[str, ...],
        attributes_from: AttributesFrom,
        data_dir: str | None = None,
    ) -> None:
        self._api = Api(url, project_id, api_key)
        self._queries = QuerySource(url, project_id, api_key, allowlist, attributes_from)
        self._exports = FileExports(self._api, f"{url} {project_id}", UPath(data_dir) / FOLDER if data_dir else None)
        self._late, self._allowlist, self._attributes_from = timedelta(days=late_days), allowlist, attributes_from

    def check(self) -> None:
        """Raises `NotExtracted` if PostHog does not accept the key or the project.

        Not every PostHog lists its exports: 405 means that it supports them, and after 404 only the first export will tell.
        """
        answer = self._api.ask("GET", PATH, params={"limit": 1})
        if answer.status == 404:
            self._queries.check()
        elif answer.status not in (200, 405):
            raise export_error_for(answer)

    def history(self, before: datetime) -> EventStream:
        """Returns all `$identify` and `$set` events before that time, by HogQL (scope Query Read), since they are few over a
        long time."""
        return self._queries.history(before)

    def readable_until(self, start: datetime, moment: datetime) -> datetime:  # noqa: ARG002
        """Raises `NothingSoFar`: each time, PostHog would bill everything that has landed since the day before."""
        raise NothingSoFar(
            f"PostHog bills each export of a file_download, so none is requested for {start:%Y-%m-%d}, which is not over:"
            " for today's events use CIO_EVENT_SOURCE=query, or an hourly batch export."
        )

    def events(self, start: datetime, end: datetime) -> EventStream:
        """Returns the events of a time window, whose files are downloaded as its frames are consumed. Raises `NotExtracted`."""
        now = datetime.now(UTC).replace(microsecond=0) - CLOCKS_DIFFER
        if now < end:
            raise NotExtracted(f"{start:%Y-%m-%d} is not over yet: PostHog exports only what is past.")
        event_filter = EventFilter(start, end, self._allowlist, self._attributes_from)
        weeks = _weeks(start - EARLY, min(end + self._late, now))
        return event_stream(table for first, last in weeks for table in self._exported(first, last, event_filter))

    def _exported(self, first: datetime, last: datetime, event_filter: EventFilter) -> Iterator[pa.Table]:
        """The events of an export. Raises `NotExtracted` if its files have fewer rows than PostHog says."""
        export = self._exports.completed(first, last)
        files, rows, known = list(export.files or []), 0, set(export.files or [])
        while files:
            file = files.pop(0)
            with spill_folder() as spill:
                rows += self._exports.downloads.download(export, file, spill / "export.parquet")
                yield from _read(str(spill / "export.parquet"), file, event_filter)
            logger.info(
                "%s: %d of %d files of PostHog's export read.", event_filter.start.date(), len(known) - len(files), len(known)
            )
            if not files and export.records is not None and rows < export.records:
                files = self._exports.more_files(export, known)
                known |= set(files)
        if export.records is not None and rows < export.records:
            raise NotExtracted(
                f"PostHog's export has {export.records:,} events, but its files only {rows:,}: run the day again later."
            )


def _read(path: str, file: str, event_filter: EventFilter) -> Iterator[pa.Table]:
    try:
        yield from read_parquet(path, event_filter)
    except UnreadableFile as error:
        raise NotExtracted(f"The file {file[:50]} of PostHog's export cannot be read: {error}.") from None
    except (pa.ArrowException, OSError) as error:
        sentence = no_space(error) or f"The file {file[:50]} of PostHog's export cannot be read: {explain(error)}."
        raise NotExtracted(sentence) from None


def _weeks(first: datetime, last: datetime) -> Iterator[tuple[datetime, datetime]]:
    while first < last:
        end = min(first + LONGEST_EXPORT, last)
        yield first, end
        first = end
