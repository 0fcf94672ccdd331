"""Reads a time window by HogQL: counts its events, reads them in slices by name and hash, and checks the number of rows."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import pandas as pd
import requests

from cio_pipeline.http.retry import AnswerTooLong, backoff
from cio_pipeline.masking import mask
from cio_pipeline.posthog.client import Answer, Api, error_for
from cio_pipeline.posthog.rows import Rows, event_frame, parse_rows
from cio_pipeline.posthog.slices import MAX_ROWS, TARGET_ROWS, Slice, slices
from cio_pipeline.posthog.source import NotExtracted

logger = logging.getLogger(__name__)

CONCURRENT_QUERIES = 3
"""PostHog runs three API queries of an organisation at once."""

ROUND = 1000
"""Older PostHogs return at most 10,000 rows, whatever the LIMIT. So a multiple of 1,000 rows may not be all there are."""

MIN_COUNTED_TIME = timedelta(minutes=1)

MAX_TRIES_BEFORE_SMALLER = 3
"""A query that fails for a reason that may be transient is tried this often, then in smaller parts, as it may be too large."""

MAX_BUSY_SECONDS = 900.0
"""How long all queries of a window together may wait because of failures that may be transient."""

IN_WINDOW = "timestamp >= toDateTime64({start}, 6, 'UTC') AND timestamp < toDateTime64({end}, 6, 'UTC')"
IN_SLICE = (
    "event IN {events} AND cityHash64(distinct_id) >= {low} AND cityHash64(distinct_id) <= {high}"
    " AND cityHash64(uuid) >= {uuid_low} AND cityHash64(uuid) <= {uuid_high}"
)
LEFT = "bytes left to read"
COUNTED = "events counted by PostHog"
"""The entry of `EventStream.stats` with PostHog's own count of the events, made before they are read."""

RETURNED = "events returned by PostHog"
"""The entry with the number of rows; those of the second reading, if the window was read twice."""


class Selection(NamedTuple):
    """The columns to select, and a condition for the events that the settings need, with its values."""

    columns: tuple[str, ...]
    condition: str
    values: dict[str, Any]


class Queries:
    """HogQL queries to a project. `row_limit` is the most rows that PostHog was found to return, if that is less than LIMIT."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.row_limit: int | None = None

    def ask(self, hogql: str, values: dict[str, Any], **how: Any) -> Answer:
        """Returns PostHog's answer to a query, never from its cache; `how` is passed on to `Api.ask`."""
        modifiers = {"convertToProjectTimezone": False}
        query = {"kind": "HogQLQuery", "query": hogql, "values": values, "modifiers": modifiers}
        body = {"query": query, "refresh": "force_blocking", "name": "cio_pipeline"}
        return self._api.ask("POST", "query", json=body, **how)


class WindowReader:
    """Reads one time window: counts its events by name, and reads them in slices."""

    def __init__(self, queries: Queries, selection: Selection, start: datetime, end: datetime) -> None:
        self.stats: dict[str, int] = {"queries": 0}
        self._queries, self._selection, self._start, self._end = queries, selection, start, end
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._busy, self._patience, self._asked_for_less = 0, MAX_BUSY_SECONDS, False

    def counts(self, start: datetime, end: datetime) -> Counter[str]:
        """Counts the events by name: each half of the time by itself if that is too much for one query, and once more if there
        are none."""
        return self._counted("event", "event", start, end) or self._counted("event", "event", start, end)

    def months(self, start: datetime, end: datetime) -> Counter[str]:
        """Counts the events by month (`202603`), like `counts`."""
        month = "toYYYYMM(timestamp) AS month"
        return self._counted("month", month, start, end) or self._counted("month", month, start, end)

    def all_frames(self, stats: dict[str, int]) -> Iterator[pd.DataFrame]:
        """Counts the window's events, returns their rows as `frames` does, and adds its own stats to `stats` at the end."""
        yield from self.frames(self.counts(self._start, self._end))
        for name, count in self.stats.items():
            stats[name] = count if name == LEFT else stats.get(name, 0) + count

    def _counted(self, name: str, column: str, start: datetime, end: datetime) -> Counter[str]:
        is_smallest = end - start <= MIN_COUNTED_TIME
        rows = self._query(f"{column}, count() AS events", f"GROUP BY {name}", _times(start, end), is_smallest)
        if rows is not None and not rows.is_full:
            counts = Counter(
                {str(value): _number(count) for value, count in zip(rows.column(name), rows.column("events"), strict=True)}
            )
            if rows.row_count % ROUND or not rows.row_count or self._total(start, end) == counts.total():
                return counts
        if is_smallest:
            raise NotExtracted(f"PostHog cannot count the events of the minute {start:%Y-%m-%d %H:%M}: try again later.")
        middle = start + (end - start) / 2
        return self._counted(name, column, start, middle) + self._counted(name, column, middle, end)

    def _total(self, start: datetime, end: datetime) -> int | None:
        """Counts all events, by a query whose answer cannot be cut off."""
        rows = self._query("count() AS events", "", _times(start, end))
        return None if rows is None or not rows.row_count else _number(rows.column("events")[0])

    def frames(self, counts: Counter[str]) -> Iterator[pd.DataFrame]:
        """Returns the rows of all slices: as many as PostHog counts before or after, or a number in between, as events arrive
        late.

        If it is any other number, the window is read once more, in slices no larger than what PostHog seems to return at most.
        If that does not help, it raises `NotExtracted`, with both numbers.
        """
        for is_last in (False, True):
            rows = largest = 0
            for frame in self._sliced(counts):
                rows, largest = rows + len(frame), max(largest, len(frame))
                yield frame
            self.stats[RETURNED] = rows
            if rows == (before := counts.total()):
                return
            counts = self.counts(self._start, self._end)
            if min(before, counts.total()) <= rows <= max(before, counts.total()):
                return
            error = f"PostHog gave {rows:,} events of {self._start:%Y-%m-%d}, but counts {counts.total():,}"
            if is_last:
                raise NotExtracted(f"{error}: run the partition again.")
            logger.warning("%s: reading them again.", error)
            if largest and largest % ROUND == 0:
                self._queries.row_limit = largest

    def _sliced(self, counts: Counter[str]) -> Iterator[pd.DataFrame]:
        """The rows of the slices, read three at a time. A slice that is full or too big is replaced by smaller ones, which are
        read first."""
        todo = deque(slices(counts, self._target))
        running: set[Future[pd.DataFrame | list[Slice]]] = set()
        with ThreadPoolExecutor(CONCURRENT_QUERIES) as threads:
            try:
                while todo or running:
                    while todo and len(running) < CONCURRENT_QUERIES:
                        running.add(threads.submit(self._slice, todo.popleft()))
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for result in [future.result() for future in done]:
                        if isinstance(result, list):
                            todo.extendleft(result)
                        else:
                            yield result
            except BaseException:
                self._stopped.set()
                raise

    def _slice(self, part: Slice) -> pd.DataFrame | list[Slice]:
        smaller = part.smaller()
        rows = self._query_slice(", ".join(self._selection.columns), part, is_smallest=not smaller)
        if rows is not None and not rows.is_full:
            return event_frame(rows.columns, self._start, self._end)
        if (
            rows is not None and len(part.events) == 1 and part.cuts % 2 == 0
        ):  # only every other time, as many may have the same uuid
            counted = self._query_slice("count() AS events", part)
            count = _number(counted.column("events")[0]) if counted and counted.row_count else 2 * MAX_ROWS
            smaller = part.by_uuid(count, self._target) or smaller
        if not smaller:
            raise NotExtracted(
                f"PostHog cannot return the events {mask(part.events[0])!r} of {self._start:%Y-%m-%d}, not even in small parts:"
                " try again later, or read them from a batch export (CIO_EVENT_SOURCE)."
            )
        return smaller

    def _query_slice(self, columns: str, part: Slice, is_smallest: bool = False) -> Rows | None:
        hashes = {"low": part.ids[0], "high": part.ids[1], "uuid_low": part.uuids[0], "uuid_high": part.uuids[1]}
        values = {**_times(self._start, self._end), "events": list(part.events), **hashes}
        return self._query(columns, f"AND {IN_SLICE}", values, is_smallest)

    def _query(self, columns: str, rest: str, values: dict[str, Any], is_smallest: bool = False) -> Rows | None:
        """Returns the rows of a query, or None if it is too much for PostHog.

        If PostHog may only be busy, the query is tried again after a wait, and then considered too much. One that cannot be
        made smaller is tried as long as the window's patience lasts.
        """
        condition, condition_values = self._selection.condition, self._selection.values
        hogql = f"SELECT {columns} FROM events WHERE {IN_WINDOW}{condition} {rest} LIMIT {MAX_ROWS}"  # noqa: S608
        attempt = 0
        while True:
            attempt += 1
            try:
                answer = self._queries.ask(hogql, {**values, **condition_values}, sleep=self._sleep, may_be_too_big=True)
            except AnswerTooLong:
                return None
            self._note(answer.response)
            if answer.status == 200:
                self._busy = 0
                return parse_rows(answer.body, self._queries.row_limit or MAX_ROWS)
            if answer.is_too_big:
                return None
            if not answer.may_be_transient:
                raise error_for(answer)
            if not self._waited(answer, attempt, is_smallest):
                return None

    def _waited(self, answer: Answer, attempt: int, is_smallest: bool) -> bool:
        """Waits and returns True if the same query is to be tried again. Raises `NotExtracted` if nothing is left to try.

        Once a smaller query has been tried, it waits once at most, and not at all if PostHog answers other queries meanwhile.
        """
        with self._lock:
            tries = MAX_TRIES_BEFORE_SMALLER if not self._asked_for_less else 2 if self._busy else 1
            may_wait = is_smallest or attempt < tries
            self._busy += 1
            asked = answer.response.headers.get("Retry-After", "")
            wait = max(backoff(self._busy), min(float(asked), MAX_BUSY_SECONDS) if asked.isdecimal() else 0.0)
            if may_wait and self._patience > 0:
                self._patience -= wait
            elif is_smallest:
                raise NotExtracted(
                    f"PostHog still answers {answer.status} after {MAX_BUSY_SECONDS / 60:.0f} minutes of waiting, and to ever"
                    " smaller queries: try again later."
                )
            else:
                is_first, self._asked_for_less = not self._asked_for_less, True
                if is_first:
                    logger.info("PostHog answered %d: busy, or the query was too large; trying smaller ones.", answer.status)
                return False
        if wait >= 10:
            logger.info("PostHog answered %d; trying again in %.0f s.", answer.status, wait)
        self._sleep(wait)
        return True

    @property
    def _target(self) -> int:
        return TARGET_ROWS if self._queries.row_limit is None else self._queries.row_limit * 4 // 5

    def _note(self, response: requests.Response) -> None:
        """Counts the query, and the bytes it has read of those that PostHog allows an organisation in an hour."""
        with self._lock:
            self.stats["queries"] += 1
            if (read := response.headers.get("X-PostHog-Query-Bytes-Read", "")).isdecimal():
                self.stats["bytes PostHog read"] = self.stats.get("bytes PostHog read", 0) + int(read)
            if (left := response.headers.get("X-PostHog-Query-Budget-Remaining-Bytes", "")).isdecimal():
                self.stats[LEFT] = int(left)

    def _sleep(self, seconds: float) -> None:
        """Sleeps. Raises `NotExtracted` as soon as another query fails, so that no query waits for a day that has failed."""
        if self._stopped.wait(seconds):
            raise NotExtracted("Another query failed.")


def _number(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise NotExtracted("PostHog's count is not a number: is POSTHOG_HOST the address of PostHog itself?") from None


def _times(start: datetime, end: datetime) -> dict[str, str]:
    return {"start": f"{start:%Y-%m-%d %H:%M:%S.%f}", "end": f"{end:%Y-%m-%d %H:%M:%S.%f}"}
