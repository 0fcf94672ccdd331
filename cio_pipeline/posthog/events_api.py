"""Events by the list endpoint, for self-hosted PostHog 1.30.0 to 1.43 (facts: `GET /api/projects/:id/events/`)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cio_pipeline.posthog.api import Api, refused
from cio_pipeline.posthog.progress import Progress
from cio_pipeline.posthog.rows import event_frame
from cio_pipeline.posthog.source import EVENT_SCHEMA, EVER, HISTORY_EVENTS, NotExtracted, Say, Window, quietly

PAGE_ROWS = 1000
"""What is asked for; servers give 100 (fixed in old ones), at most 1,000 (`EVENT_LIST_MAX_LIMIT`) or at most 50,000."""

MOST_PAGE_ROWS = 100_000
"""What is asked for where a single moment fills every smaller page."""

PAGE_SIZES = frozenset({100, 1000, 10_000, 50_000, MOST_PAGE_ROWS})
"""A page of so many rows may have been cut off: what PostHog's versions give at most, and what is asked for."""

TICK = timedelta(microseconds=1)
DAY = timedelta(days=1)
FRAME_ROWS = 50_000


class EventsApiSource:
    """The `events_api` source: pages by time, each beginning with the moment the last one ended with.

    Such a PostHog gives no created_at and no properties of persons, and takes quotes off both ends of a property's text.
    """

    def __init__(self, url: str, project_id: str, api_key: str, allowlist: tuple[str, ...], with_person: bool) -> None:
        self._api = Api(url, project_id, api_key)
        self._needed = {*allowlist, "$identify"} if allowlist else None
        self._with_person = with_person

    def check(self, say: Say = quietly) -> None:
        """Raises `NotExtracted` where PostHog does not take the key or the project, or persons' properties are asked for."""
        if self._with_person:
            raise NotExtracted(
                "CIO_ATTRIBUTES_FROM must be set: this PostHog has no /query/, and lists events without person properties."
            )
        now = datetime.now(timezone.utc)
        self._page(Rest(now - DAY, now, limit=1), say)

    def events(self, start: datetime, end: datetime, say: Say) -> Window:
        """The window's events, day by day: windows of several days were seen to come short."""
        days = [start + number * DAY for number in range(-(-(end - start) // DAY))]
        pages = (page for day in days for page in self._pages(day, min(day + DAY, end), say))
        return _counted(f"{start:%Y-%m-%d}", map(self._only_needed, pages), say)

    def history(self, before: datetime, say: Say) -> Window:
        """All `$identify` and `$set` events before that time."""
        pages = (page for event in HISTORY_EVENTS for page in self._pages(EVER, before, say, event=event))
        return _counted(f"Before {before:%Y-%m-%d}", pages, say)

    def _pages(self, start: datetime, end: datetime, say: Say, **only: str) -> Iterator[pd.DataFrame]:
        """What each page has that the one before had not."""
        rest = Rest(start - TICK, end)
        while rest.is_left:
            page = self._page(rest, say, **only)
            yield rest.new_in(page)
            rest.go_behind(page)

    def _page(self, rest: Rest, say: Say, **only: str) -> pd.DataFrame:
        """Events of what is left, as many as the server gives."""
        bounds = {"after": _text(rest.after), "before": _text(rest.before)}
        answer = self._api.ask("GET", "events", say, params={**bounds, **only, "orderBy": '["timestamp"]', "limit": rest.limit})
        if answer.status != 200:
            raise refused(answer)
        try:
            rows = answer.body["results"]
            columns = {name: [row[name] for row in rows] for name in ("event", "distinct_id", "timestamp", "properties")}
            return event_frame({**columns, "uuid": [row["id"] for row in rows]}, rest.after + TICK, rest.before)
        except (KeyError, TypeError) as wrong:
            raise NotExtracted("PostHog's list of events is none: is POSTHOG_HOST the address of PostHog?") from wrong

    def _only_needed(self, events: pd.DataFrame) -> pd.DataFrame:
        """What the settings need (R1, R3), as the query source asks for it."""
        if self._needed is None:
            return events
        return events[events["event"].isin(self._needed) | events["properties"].str.contains('"email"', regex=False, na=False)]


def _counted(what: str, pages: Iterator[pd.DataFrame], say: Say) -> Window:
    """The pages' rows, which PostHog cannot count: they are read into a temporary file first."""
    facts, progress = {"pages": 0}, Progress(what, None, say)
    file = tempfile.TemporaryFile(prefix="cio_pipeline_")  # noqa: SIM115 - it goes when the frames are gone
    with pq.ParquetWriter(file, EVENT_SCHEMA, compression="lz4") as spool:
        for page in pages:
            facts["pages"] += 1
            progress.add(len(page))
            spool.write_table(pa.Table.from_pandas(page, EVENT_SCHEMA, preserve_index=False))
    spooled = pq.ParquetFile(file)
    frames = (batch.to_pandas() for batch in spooled.iter_batches(FRAME_ROWS))
    return Window(spooled.metadata.num_rows, frames, facts)


@dataclass
class Rest:
    """What is left to be read of a window: `after` < timestamp < `before`, the last moment of the last page still in it.

    PostHog's `next` would leave that moment behind, and with it what a full page had no room for.
    """

    after: datetime
    before: datetime
    limit: int = PAGE_ROWS
    is_left: bool = True
    _is_ascending: bool | None = None
    _largest: int = 0
    _seen: set[str] = field(default_factory=set)

    def new_in(self, page: pd.DataFrame) -> pd.DataFrame:
        """The rows that the last page had not. Raises `NotExtracted` where it has none of that page's last moment again."""
        if self._seen and self._seen.isdisjoint(page["uuid"]):
            raise NotExtracted(f"PostHog's list jumps at {(self.after + TICK).isoformat()}, so that some might be missed.")
        return page[~page["uuid"].isin(self._seen)]

    def go_behind(self, page: pd.DataFrame) -> None:
        """Moves on, or asks for more at once where the page is one moment. Raises `NotExtracted` where neither is possible."""
        if page.empty:
            self.is_left = False
            return
        self._seen, self._largest = set(page["uuid"]), max(self._largest, len(page))
        self._is_ascending = _is_ascending(page["timestamp"], self._is_ascending)
        last = page["timestamp"].iloc[-1].to_pydatetime()
        if self._is_ascending and last - TICK > self.after:
            self.after, self.limit = last - TICK, PAGE_ROWS
        elif self._is_ascending is False and last + TICK < self.before:
            self.before, self.limit = last + TICK, PAGE_ROWS
        elif len(page) < self._largest or len(page) not in PAGE_SIZES:
            self.is_left = False
        elif self.limit < MOST_PAGE_ROWS:
            self.limit *= 10
        else:
            raise NotExtracted(
                f"PostHog lists {len(page):,} events of the one moment {last.isoformat()}, and no more at once, but there may"
                " be more: write that day's events to a file and set CIO_EVENT_SOURCE=batch_export for it."
            )


def _is_ascending(times: pd.Series[Any], known: bool | None) -> bool | None:
    """The order of a page, which servers may choose themselves; what was known where it is all one moment."""
    is_ascending, is_descending = times.is_monotonic_increasing, times.is_monotonic_decreasing
    if is_ascending and is_descending:
        return known
    if known is (not is_ascending) or not (is_ascending or is_descending):
        raise NotExtracted(
            f"PostHog lists events about {times.iloc[0].isoformat()} in no order of time, so that some might be missed."
        )
    return bool(is_ascending)


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z"
