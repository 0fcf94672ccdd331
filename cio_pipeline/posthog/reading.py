"""The reading of a window by HogQL: counted first, then in slices by event and hash, checked against the counts."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import pandas as pd
import requests

from cio_pipeline.http.retry import TooLong
from cio_pipeline.masking import mask
from cio_pipeline.posthog.client import Answer, Api, pause, refused
from cio_pipeline.posthog.rows import Found, event_frame, found_in
from cio_pipeline.posthog.slices import MAX_ROWS, TARGET_ROWS, Slice, slices
from cio_pipeline.posthog.source import NotExtracted

logger = logging.getLogger(__name__)

AT_ONCE = 3
"""PostHog runs three API queries of an organisation at once."""

ROUND = 1000
"""Older PostHogs give at most 10,000 rows, whatever is asked for: so many thousands may be all they gave, not all there is."""

SHORTEST_COUNT = timedelta(minutes=1)

ASKED_BEFORE_SMALLER = 3
"""What may pass is asked for so often; then in smaller parts, for it may have been too much."""

BUSY_SECONDS = 900.0
"""So long, in all, a window's queries wait for what may pass."""

IN_WINDOW = "timestamp >= toDateTime64({start}, 6, 'UTC') AND timestamp < toDateTime64({end}, 6, 'UTC')"
IN_SLICE = (
    "event IN {events} AND cityHash64(distinct_id) >= {low} AND cityHash64(distinct_id) <= {high}"
    " AND cityHash64(uuid) >= {uuid_low} AND cityHash64(uuid) <= {uuid_high}"
)
LEFT = "bytes left to read"
COUNTED = "events counted by PostHog"
"""PostHog's own count of a window's events, made before they are read: an entry of `Window.stats`."""


class Selection(NamedTuple):
    """What is selected of which events: columns, and a condition for those that the settings need, with its values."""

    columns: tuple[str, ...]
    needed: str
    values: dict[str, Any]


class Queries:
    """HogQL queries to a project; `clamp` is what PostHog was found to give at most, where that is less than is asked for."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.clamp: int | None = None

    def ask(self, hogql: str, values: dict[str, Any], **how: Any) -> Answer:
        """PostHog's answer to a query, never one from its cache; `how` is passed on to `Api.ask`."""
        modifiers = {"convertToProjectTimezone": False}
        query = {"kind": "HogQLQuery", "query": hogql, "values": values, "modifiers": modifiers}
        body = {"query": query, "refresh": "force_blocking", "name": "cio_pipeline"}
        return self._api.ask("POST", "query", json=body, **how)


class Reading:
    """One window's reading: how many events there are by name, and all of them, in slices."""

    def __init__(self, queries: Queries, selection: Selection, start: datetime, end: datetime) -> None:
        self.stats: dict[str, int] = {"queries": 0}
        self._queries, self._selection, self._start, self._end = queries, selection, start, end
        self._account = threading.Lock()
        self._stopped = threading.Event()
        self._busy, self._patience, self._asked_for_less = 0, BUSY_SECONDS, False

    def counts(self, start: datetime, end: datetime) -> Counter[str]:
        """Events by name. What is too much to be counted at once is counted in halves of the time; none at all, once more."""
        return self._counted("event", "event", start, end) or self._counted("event", "event", start, end)

    def months(self, start: datetime, end: datetime) -> Counter[str]:
        """Events by month (`202603`), counted as `counts` does by name."""
        month = "toYYYYMM(timestamp) AS month"
        return self._counted("month", month, start, end) or self._counted("month", month, start, end)

    def all_frames(self, stats: dict[str, int]) -> Iterator[pd.DataFrame]:
        """The window's rows, counted first. What the reading took is added to `stats` at the end."""
        yield from self.frames(self.counts(self._start, self._end))
        for name, count in self.stats.items():
            stats[name] = count if name == LEFT else stats.get(name, 0) + count

    def _counted(self, name: str, column: str, start: datetime, end: datetime) -> Counter[str]:
        is_smallest = end - start <= SHORTEST_COUNT
        found = self._query(f"{column}, count() AS events", f"GROUP BY {name}", _times(start, end), is_smallest)
        if found is not None and not found.is_full:
            counts = Counter(
                {str(value): _number(of) for value, of in zip(found.column(name), found.column("events"), strict=True)}
            )
            if found.rows % ROUND or not found.rows or self._total(start, end) == counts.total():
                return counts
        if is_smallest:
            raise NotExtracted(f"PostHog cannot count the events of {start:%Y-%m-%d %H:%M}, a minute's: try again later.")
        middle = start + (end - start) / 2
        return self._counted(name, column, start, middle) + self._counted(name, column, middle, end)

    def _total(self, start: datetime, end: datetime) -> int | None:
        """How many events there are, told by an answer that no `ROUND` number of names can cut off."""
        found = self._query("count() AS events", "", _times(start, end))
        return None if found is None or not found.rows else _number(found.column("events")[0])

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
            error = f"PostHog gave {rows:,} events of {self._start:%Y-%m-%d}, but counts {counts.total():,}"
            if is_last:
                raise NotExtracted(f"{error}: run the partition again.")
            logger.warning("%s: reading them once more.", error)
            if largest and largest % ROUND == 0:
                self._queries.clamp = largest

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
        smaller = part.smaller()
        found = self._query_slice(", ".join(self._selection.columns), part, is_smallest=not smaller)
        if found is not None and not found.is_full:
            return event_frame(found.columns, self._start, self._end)
        if found is not None and len(part.events) == 1 and part.cuts % 2 == 0:  # in turn, for many may have one uuid
            counted = self._query_slice("count() AS events", part)
            rows = _number(counted.column("events")[0]) if counted and counted.rows else 2 * MAX_ROWS
            smaller = part.by_uuid(rows, self._target) or smaller
        if not smaller:
            raise NotExtracted(
                f"PostHog cannot give the events {mask(part.events[0])!r} of {self._start:%Y-%m-%d}, not even in small parts:"
                " try again later, or take them from a batch export (CIO_EVENT_SOURCE)."
            )
        return smaller

    def _query_slice(self, columns: str, part: Slice, is_smallest: bool = False) -> Found | None:
        hashes = {"low": part.ids[0], "high": part.ids[1], "uuid_low": part.uuids[0], "uuid_high": part.uuids[1]}
        values = {**_times(self._start, self._end), "events": list(part.events), **hashes}
        return self._query(columns, f"AND {IN_SLICE}", values, is_smallest)

    def _query(self, columns: str, rest: str, values: dict[str, Any], is_smallest: bool = False) -> Found | None:
        """What PostHog finds in the window, fresh; None where that is too much for it.

        An answer that may be PostHog's being busy is waited out, then taken for too much; what cannot be made smaller
        is asked for as long as the window's patience lasts.
        """
        needed, needed_values = self._selection.needed, self._selection.values
        hogql = f"SELECT {columns} FROM events WHERE {IN_WINDOW}{needed} {rest} LIMIT {MAX_ROWS}"  # noqa: S608
        for attempt in itertools.count(1):
            try:
                answer = self._queries.ask(hogql, {**values, **needed_values}, sleep=self._sleep, may_be_too_big=True)
            except TooLong:
                return None
            self._note(answer.response)
            if answer.status == 200:
                self._busy = 0
                return found_in(answer.body, self._queries.clamp or MAX_ROWS)
            if answer.is_too_big:
                return None
            if not answer.may_pass:
                raise refused(answer)
            if not self._waited(answer, attempt, is_smallest):
                return None
        raise AssertionError

    def _waited(self, answer: Answer, attempt: int, is_smallest: bool) -> bool:
        """Whether the same is to be asked again, after a wait. Raises `NotExtracted` where nothing is left to be done.

        Once it was asked for less, there is one wait; none where PostHog answers others meanwhile.
        """
        with self._account:
            most = ASKED_BEFORE_SMALLER if not self._asked_for_less else 2 if self._busy else 1
            may_wait = is_smallest or attempt < most
            self._busy += 1
            asked = answer.response.headers.get("Retry-After", "")
            wait = max(pause(self._busy), min(float(asked), BUSY_SECONDS) if asked.isdecimal() else 0.0)
            if may_wait and self._patience > 0:
                self._patience -= wait
            elif is_smallest:
                raise NotExtracted(
                    f"PostHog answers {answer.status}, for {BUSY_SECONDS / 60:.0f} minutes of waiting and to ever smaller"
                    " questions: try again later."
                )
            else:
                says, self._asked_for_less = not self._asked_for_less, True
                if says:
                    logger.info("PostHog: it answered %d, busy or asked for too much; asking for less at once.", answer.status)
                return False
        if wait >= 10:
            logger.info("PostHog: it answered %d; trying again in %.0f s.", answer.status, wait)
        self._sleep(wait)
        return True

    @property
    def _target(self) -> int:
        return TARGET_ROWS if self._queries.clamp is None else self._queries.clamp * 4 // 5

    def _note(self, response: requests.Response) -> None:
        """Adds up what PostHog says each query read of the bytes that an organisation may read in an hour."""
        with self._account:
            self.stats["queries"] += 1
            if (read := response.headers.get("X-PostHog-Query-Bytes-Read", "")).isdecimal():
                self.stats["bytes PostHog read"] = self.stats.get("bytes PostHog read", 0) + int(read)
            if (left := response.headers.get("X-PostHog-Query-Budget-Remaining-Bytes", "")).isdecimal():
                self.stats[LEFT] = int(left)

    def _sleep(self, seconds: float) -> None:
        """Sleeps, unless another query failed: nobody waits an hour for a day that is lost."""
        if self._stopped.wait(seconds):
            raise NotExtracted("Another query failed.")


def _number(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise NotExtracted("PostHog's count is not a number: is POSTHOG_HOST the address of PostHog itself?") from None


def _times(start: datetime, end: datetime) -> dict[str, str]:
    return {"start": f"{start:%Y-%m-%d %H:%M:%S.%f}", "end": f"{end:%Y-%m-%d %H:%M:%S.%f}"}
