"""Events by HogQL over PostHog's query endpoint, `POST /api/projects/:id/query/`."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from copy import copy
from datetime import datetime, timedelta, timezone
from typing import Any

import pandas as pd
import requests

from cio_pipeline.http import TooLong
from cio_pipeline.masking import mask
from cio_pipeline.posthog.api import TOO_BIG, Answer, Api, refused
from cio_pipeline.posthog.rows import Found, event_frame, found_in
from cio_pipeline.posthog.slices import MOST_ROWS, TARGET_ROWS, Slice, slices
from cio_pipeline.posthog.source import EVER, HISTORY_EVENTS, NotExtracted, Say, Window, quietly

AT_ONCE = 3
"""PostHog runs three API queries of an organisation at once."""

ROUND = 1000
"""Older PostHogs give at most 10,000 rows, whatever is asked for: so many thousands may be all they gave, not all there is."""

SHORTEST_COUNT = timedelta(minutes=1)

IN_WINDOW = "timestamp >= toDateTime64({start}, 6, 'UTC') AND timestamp < toDateTime64({end}, 6, 'UTC')"
IN_SLICE = (
    "event IN {events} AND cityHash64(distinct_id) >= {low} AND cityHash64(distinct_id) <= {high}"
    " AND cityHash64(uuid) >= {uuid_low} AND cityHash64(uuid) <= {uuid_high}"
)
COLUMNS = ("uuid", "event", "distinct_id", "timestamp", "created_at", "properties")


class QuerySource:
    """The `query` source: counts first, then slices by event and hash, checked against the counts.

    `columns` are what is selected; `needed` is a condition for the events that the settings need, with its values; `clamp` is
    what PostHog was found to give at most, where that is less than it is asked for.
    """

    def __init__(self, url: str, project_id: str, api_key: str, allowlist: tuple[str, ...], with_person: bool) -> None:
        self._api = Api(url, project_id, api_key)
        self.columns = (*COLUMNS, "poe.properties AS person_properties") if with_person else COLUMNS
        self.needed = _needed(allowlist, with_person)
        self.clamp: int | None = None

    def exists(self, say: Say = quietly) -> bool:
        """Whether this PostHog has the query endpoint; also False where it has no such project."""
        return self.ask("SELECT 1", {}, say).status not in (404, 405)

    def check(self, say: Say = quietly) -> None:
        """Raises `NotExtracted` where PostHog does not take the key or the project."""
        answer = self.ask("SELECT 1", {}, say)
        if answer.status != 200:
            raise refused(answer)

    def events(self, start: datetime, end: datetime, say: Say) -> Window:
        """The window's events, counted first. Raises `NotExtracted` where PostHog refuses."""
        reading = Reading(self, start, end, say)
        counts = reading.counts(start, end)
        return Window(counts.total(), reading.frames(counts), reading.facts)

    def history(self, before: datetime, say: Say) -> Window:
        """All `$identify` and `$set` events before that time, month by month. Raises `NotExtracted` where PostHog refuses."""
        source = copy(self)
        source.needed = " AND event IN {needed}", {"needed": list(HISTORY_EVENTS)}
        count, first = Reading(source, EVER, before, say).extent(EVER, before)
        frames = (frame for start, end in _months(first, before) for frame in source.events(start, end, say).frames)
        return Window(count, frames if count else iter(()))

    def ask(self, hogql: str, values: dict[str, Any], say: Say = quietly, **how: Any) -> Answer:
        """PostHog's answer to a query, never one from its cache; `how` is passed on to `Api.ask`."""
        modifiers = {"convertToProjectTimezone": False}
        query = {"kind": "HogQLQuery", "query": hogql, "values": values, "modifiers": modifiers}
        body = {"query": query, "refresh": "force_blocking", "name": "cio_pipeline"}
        return self._api.ask("POST", "query", say, json=body, **how)


class Reading:
    """One window's reading: how many events there are by name, and all of them, in slices."""

    def __init__(self, source: QuerySource, start: datetime, end: datetime, say: Say) -> None:
        self.facts: dict[str, int] = {"queries": 0}
        self._source, self._start, self._end, self._say = source, start, end, say
        self._account = threading.Lock()
        self._stopped = threading.Event()

    def counts(self, start: datetime, end: datetime) -> Counter[str]:
        """Events by name. What is too much to be counted at once is counted in halves of the time."""
        found = self._query("event, count() AS events", "GROUP BY event", _times(start, end))
        if found is not None and not found.is_full:
            counted = zip(found.column("event"), found.column("events"), strict=True)
            counts = Counter({str(event): int(events) for event, events in counted})
            if found.rows % ROUND or not found.rows or self._total(start, end) == counts.total():
                return counts
        if end - start <= SHORTEST_COUNT:
            raise NotExtracted(f"PostHog cannot count the events of {start:%Y-%m-%d %H:%M}, a minute's: try again later.")
        middle = start + (end - start) / 2
        return self.counts(start, middle) + self.counts(middle, end)

    def _total(self, start: datetime, end: datetime) -> int | None:
        """How many events there are, told by an answer that no `ROUND` number of names can cut off."""
        found = self._query("count() AS events", "", _times(start, end))
        return None if found is None else int(found.column("events")[0])

    def extent(self, start: datetime, end: datetime) -> tuple[int, datetime]:
        """How many events there are, and the time of the first. What is too much at once is asked in halves of the time."""
        found = self._query("count() AS events, min(timestamp) AS first", "", _times(start, end))
        if found is not None:
            [count], [first] = found.column("events"), found.column("first")
            return int(count), pd.Timestamp(first).to_pydatetime()
        if end - start <= SHORTEST_COUNT:
            raise NotExtracted("PostHog cannot find its first $identify event in the time it has: try again later.")
        middle = start + (end - start) / 2
        (earlier, first), (later, second) = self.extent(start, middle), self.extent(middle, end)
        return earlier + later, first if earlier else second

    def frames(self, counts: Counter[str]) -> Iterator[pd.DataFrame]:
        """The slices' rows: as many as PostHog counts, before or after, or some number between, for events come late.

        Any other number, and the window is read once more, in slices within what PostHog seems to give at most; then
        `NotExtracted` is raised, with both numbers.
        """
        for is_last in (False, True):
            rows = largest = 0
            for frame in self._sliced(counts):
                rows, largest = rows + len(frame), max(largest, len(frame))
                yield frame
            if rows == (before := counts.total()):
                return
            counts = self.counts(self._start, self._end)
            if min(before, counts.total()) <= rows <= max(before, counts.total()):
                return
            trouble = f"PostHog gave {rows:,} events of {self._start:%Y-%m-%d}, but counts {counts.total():,}"
            if is_last:
                raise NotExtracted(f"{trouble}: run the partition again.")
            self._say(f"{trouble}: reading them once more.")
            if largest and largest % ROUND == 0:
                self._source.clamp = largest

    def _sliced(self, counts: Counter[str]) -> Iterator[pd.DataFrame]:
        """The slices' rows, three at a time; a slice that is full or too big comes back as smaller ones, which go first."""
        todo = deque(slices(counts, self._target))
        running: set[Future[pd.DataFrame | list[Slice]]] = set()
        with ThreadPoolExecutor(AT_ONCE) as threads:
            try:
                while todo or running:
                    while todo and len(running) < AT_ONCE:
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
        found = self._query_slice(", ".join(self._source.columns), part)
        if found is not None and not found.is_full:
            return event_frame(found.columns, self._start, self._end)
        if found is not None and len(part.events) == 1:
            counted = self._query_slice("count() AS events", part)
            smaller = part.by_uuid(int(counted.column("events")[0]) if counted else 2 * MOST_ROWS, self._target)
        else:
            smaller = part.smaller()
        if not smaller:
            raise NotExtracted(
                f"PostHog cannot give the events {mask(part.events[0])!r} of {self._start:%Y-%m-%d}, not even in small parts:"
                " try again later, or take them from a batch export (CIO_EVENT_SOURCE)."
            )
        return smaller

    def _query_slice(self, columns: str, part: Slice) -> Found | None:
        hashes = {"low": part.ids[0], "high": part.ids[1], "uuid_low": part.uuids[0], "uuid_high": part.uuids[1]}
        values = {**_times(self._start, self._end), "events": list(part.events), **hashes}
        return self._query(columns, f"AND {IN_SLICE}", values)

    def _query(self, columns: str, rest: str, values: dict[str, Any]) -> Found | None:
        """What PostHog finds in the window, fresh; None where that is too much for it."""
        needed, needed_values = self._source.needed
        hogql = f"SELECT {columns} FROM events WHERE {IN_WINDOW}{needed} {rest} LIMIT {MOST_ROWS}"  # noqa: S608
        try:
            answer = self._source.ask(hogql, {**values, **needed_values}, self._say, sleep=self._sleep, may_be_too_big=True)
        except TooLong:
            return None
        self._note(answer.response)
        if answer.status in TOO_BIG:
            return None
        if answer.status != 200:
            raise refused(answer)
        return found_in(answer.body, self._source.clamp or MOST_ROWS)

    @property
    def _target(self) -> int:
        return TARGET_ROWS if self._source.clamp is None else self._source.clamp * 4 // 5

    def _note(self, response: requests.Response) -> None:
        """Adds up what PostHog says each query read of the bytes that an organisation may read in an hour."""
        with self._account:
            self.facts["queries"] += 1
            if read := response.headers.get("X-PostHog-Query-Bytes-Read"):
                self.facts["bytes PostHog read"] = self.facts.get("bytes PostHog read", 0) + int(read)
            if left := response.headers.get("X-PostHog-Query-Budget-Remaining-Bytes"):
                self.facts["bytes left to read"] = int(left)

    def _sleep(self, seconds: float) -> None:
        """Sleeps, unless another query failed: nobody waits an hour for a day that is lost."""
        if self._stopped.wait(seconds):
            raise NotExtracted("Another query failed.")


def _needed(allowlist: tuple[str, ...], with_person: bool) -> tuple[str, dict[str, Any]]:
    """A condition for the events that the settings need (R1, R3): listed ones, and those that teach facts.

    `LIKE` asks for a few events too many, but misses none: ClickHouse's JSON functions find nothing in text with half a
    surrogate pair.
    """
    if not allowlist:
        return "", {}
    holder = "poe.properties" if with_person else "properties"
    values = {"needed": [*allowlist, "$identify"], "email": '%"email"%'}
    return f" AND (event IN {{needed}} OR {holder} LIKE {{email}})", values


def _months(first: datetime, before: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Windows that together reach from `first` to `before`, a month each or less."""
    start = datetime(first.year, first.month, 1, tzinfo=timezone.utc)
    while start < before:
        end = min(before, (start + timedelta(days=32)).replace(day=1))
        yield start, end
        start = end


def _times(start: datetime, end: datetime) -> dict[str, str]:
    return {"start": f"{start:%Y-%m-%d %H:%M:%S.%f}", "end": f"{end:%Y-%m-%d %H:%M:%S.%f}"}
