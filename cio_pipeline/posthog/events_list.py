"""Events by the list endpoint, for self-hosted PostHog 1.30.0 to 1.43: `GET /api/projects/:id/events/`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cio_pipeline.posthog.client import Api, refused
from cio_pipeline.posthog.rows import NO_TIME, event_frame
from cio_pipeline.posthog.source import EVENT_SCHEMA, HISTORY_EVENTS, EventStream, NotExtracted
from cio_pipeline.progress import Progress
from cio_pipeline.rules.dropped_set import AttributesFrom
from cio_pipeline.rules.facts import ORDER
from cio_pipeline.rules.values import EPOCH

PAGE_ROWS = 1000
"""How many rows are requested. Servers give 100 (fixed in old ones), at most 1,000 (`EVENT_LIST_MAX_LIMIT`), or at most
50,000."""

MAX_PAGE_ROWS = 100_000
"""How many rows are requested if a single moment fills every smaller page."""

PAGE_SIZES = frozenset({100, 1000, 10_000, 50_000, MAX_PAGE_ROWS})
"""The limits of PostHog's versions and of the requests: a page of exactly that size may have been cut off."""

TICK = timedelta(microseconds=1)
DAY = timedelta(days=1)
FRAME_ROWS = 50_000


Event = tuple[Any, ...]
"""What identifies an event, since clients may give several of them the same uuid, or none."""


class Page(NamedTuple):
    """Events as listed, and whether PostHog says that more follow, which is believed only if it is bad news."""

    events: pd.DataFrame
    has_next: bool


class EventsApiSource:
    """The `events_api` source: pages by time, each beginning with the moment at which the previous one ended.

    Such a PostHog gives no created_at and no person properties, and removes quotes from both ends of a property's text.
    """

    def __init__(
        self, url: str, project_id: str, api_key: str, allowlist: tuple[str, ...], attributes_from: AttributesFrom
    ) -> None:
        self._api = Api(url, project_id, api_key)
        self._needed = {*allowlist, "$identify"} if allowlist else None
        self._attributes_from = attributes_from

    def check(self) -> None:
        """Raises `NotExtracted` if PostHog does not accept the key or the project, or person properties are required."""
        now = datetime.now(UTC)
        self._page(Rest(now - DAY, now, limit=1))
        if self._attributes_from == "person":
            raise NotExtracted("CIO_ATTRIBUTES_FROM must be auto or set: PostHog's list of events has no person properties.")

    def events(self, start: datetime, end: datetime) -> EventStream:
        """The window's events, day by day, as windows of several days were seen to be incomplete."""
        days = [start + number * DAY for number in range(-(-(end - start) // DAY))]
        pages = (page for day in days for page in self._pages(day, min(day + DAY, end)))
        return _counted(f"{start:%Y-%m-%d}", map(self._only_needed, pages))

    def readable_until(self, start: datetime, moment: datetime) -> datetime:  # noqa: ARG002
        """The moment itself: PostHog gives what it has."""
        return moment

    def history(self, before: datetime) -> EventStream:
        """All `$identify` and `$set` events before that time."""
        pages = (page for event in HISTORY_EVENTS for page in self._pages(EPOCH, before, event=event))
        return _counted(f"Before {before:%Y-%m-%d}", pages)

    def _pages(self, start: datetime, end: datetime, **only: str) -> Iterator[pd.DataFrame]:
        """The events of each page that the previous one did not have. An empty page is requested once more."""
        rest = Rest(start - TICK, end)
        while rest.is_left:
            page = self._page(rest, **only)
            if page.events.empty:
                page = self._page(rest, **only)
            yield rest.new_in(page.events)
            rest.go_behind(page)
        for beyond in rest.beyond:
            if not self._page(beyond, **only).events.empty:
                raise rest.cut()

    def _page(self, rest: Rest, **only: str) -> Page:
        """Events of what is left, as many as the server gives."""
        bounds = {"after": _text(rest.after), "before": _text(rest.before)}
        answer = self._api.ask("GET", "events", params={**bounds, **only, "orderBy": '["timestamp"]', "limit": rest.limit})
        if answer.status != 200:
            raise refused(answer)
        try:
            rows, following = answer.body["results"], answer.body["next"]
            columns = {name: [row[name] for row in rows] for name in ("event", "distinct_id", "timestamp", "properties")}
            uuids = [_uuid(row["id"]) for row in rows]
            frame = event_frame({**columns, "uuid": uuids}, rest.after + TICK, rest.before)
        except (KeyError, TypeError, AttributeError):
            raise NotExtracted("PostHog's list of events is none: is POSTHOG_HOST the address of PostHog?") from None
        if (frame["timestamp"] == NO_TIME).any():
            raise NotExtracted("PostHog lists an event whose time cannot be read, so that others might be missed.")
        return Page(frame, following is not None)

    def _only_needed(self, events: pd.DataFrame) -> pd.DataFrame:
        """The events that the settings need (R1, R3), as in the query source."""
        if self._needed is None:
            return events
        return events[events["event"].isin(self._needed) | events["properties"].str.contains('"email"', regex=False, na=False)]


def _counted(what: str, pages: Iterator[pd.DataFrame]) -> EventStream:
    """The rows of the pages, which are first read into a temporary file, as PostHog cannot count them."""
    stats = {"pages": 0}
    file = tempfile.TemporaryFile(prefix="cio_pipeline_")  # noqa: SIM115 - it goes when the frames are gone
    with Progress(what, "events listed", None) as progress, pq.ParquetWriter(file, EVENT_SCHEMA, compression="lz4") as spool:
        for page in pages:
            stats["pages"] += 1
            progress.add(len(page))
            spool.write_table(pa.Table.from_pandas(page, EVENT_SCHEMA, preserve_index=False))
    spooled = pq.ParquetFile(file)
    frames = (batch.to_pandas() for batch in spooled.iter_batches(FRAME_ROWS))
    return EventStream(spooled.metadata.num_rows, frames, stats)


@dataclass
class Rest:
    """What is left to read of a window: `after` < timestamp < `before`, including the last moment of the previous page.

    PostHog's `next` would skip that moment, and with it what a full page had no room for. At the end, a page of that moment
    alone is left: either there is no more, or the server cut off the page within it. `beyond` is what must be empty then.
    """

    after: datetime
    before: datetime
    limit: int = PAGE_ROWS
    is_left: bool = True
    beyond: list[Rest] = field(default_factory=list)
    _is_ascending: bool | None = None
    _moment: datetime = EPOCH
    _seen: set[Event] = field(default_factory=set)
    _rows: int = 0
    _given: dict[int, int] = field(default_factory=dict)

    def new_in(self, page: pd.DataFrame) -> pd.DataFrame:
        """The rows that the previous page did not have. Raises `NotExtracted` if the page does not begin with that page's
        last moment.

        Events of the same moment may come in another order each time, so any of them may be first.
        """
        if not self._rows:
            return page
        if page.empty or page["timestamp"].iloc[0] != self._moment:
            raise NotExtracted(f"PostHog's list jumps at {self._moment.isoformat()}, so that some might be missed.")
        return page[[event not in self._seen for event in _identities(page)]]

    def go_behind(self, page: Page) -> None:
        """Moves on, or requests larger pages if the page is a single moment. Raises `NotExtracted` if neither is
        possible."""
        before, self._rows = self._rows, len(page.events)
        if page.events.empty:
            self.is_left = False
            return
        times = page.events["timestamp"]
        self._seen, self._moment = set(_identities(page.events)), times.iloc[-1].to_pydatetime()
        self._is_ascending = _is_ascending(times, self._is_ascending)
        given = max((rows for limit, rows in self._given.items() if limit <= self.limit), default=0)
        if self._is_ascending and self._moment - TICK > self.after:
            self.after = self._moment - TICK
            self._moved()
        elif self._is_ascending is False and self._moment + TICK < self.before:
            self.before = self._moment + TICK
            self._moved()
        elif self._rows < given:
            self.is_left = False
        elif self.limit == PAGE_ROWS or (self._rows > before and self.limit < MAX_PAGE_ROWS):
            self.limit *= 10
        elif self._rows == given or self._rows in PAGE_SIZES or (page.has_next and self._rows > min(PAGE_SIZES)):
            raise self.cut()
        else:
            self.is_left, self.beyond = False, self._on_either_side()

    def _moved(self) -> None:
        """Notes how much the server gave with this limit: a smaller last page is complete, one of the same size may be cut
        off."""
        self._given[self.limit] = max(self._rows, self._given.get(self.limit, 0))
        self.limit = PAGE_ROWS

    def cut(self) -> NotExtracted:
        """The error for a moment that fills the largest page that the server gives."""
        return NotExtracted(
            f"PostHog lists {self._rows:,} events of the one moment {self._moment.isoformat()}, and no more at once, but there"
            " may be more: write that day's events to a file and set CIO_EVENT_SOURCE=batch_export for it."
        )

    def _on_either_side(self) -> list[Rest]:
        """What lies after the moment in the server's order; if that is unknown, also what lies before it."""
        later, earlier = Rest(self._moment, self.before), Rest(self.after, self._moment)
        return {True: [later], False: [earlier], None: [later, earlier]}[self._is_ascending]


def _identities(page: pd.DataFrame) -> list[Event]:
    return list(page[[*ORDER, "properties"]].itertuples(index=False, name=None))


def _is_ascending(times: pd.Series[Any], known: bool | None) -> bool | None:
    """The order of a page, which servers may choose; the known order if the page is a single moment."""
    is_ascending, is_descending = times.is_monotonic_increasing, times.is_monotonic_decreasing
    if is_ascending and is_descending:
        return known
    if known is (not is_ascending) or not (is_ascending or is_descending):
        raise NotExtracted(
            f"PostHog lists events about {times.iloc[0].isoformat()} in no order of time, so that some might be missed."
        )
    return bool(is_ascending)


def _uuid(value: Any) -> Any:
    if isinstance(value, int):
        raise NotExtracted("This PostHog runs without ClickHouse and gives its events numbers, no uuids: it is not supported.")
    return value


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z"
