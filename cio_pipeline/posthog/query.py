"""Events by HogQL over PostHog's query endpoint (facts: `POST /api/projects/:id/query/`)."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from copy import copy
from datetime import datetime, timedelta, timezone
from typing import Any

import orjson
import pandas as pd
import requests

from cio_pipeline.http import send
from cio_pipeline.posthog.slices import MOST_ROWS, Slice, slices
from cio_pipeline.posthog.source import EVENT_SCHEMA, NotExtracted, Say, Window

AT_ONCE = 3
"""PostHog runs three API queries of an organisation at once."""

RETRIED = frozenset({408, 429, 500, 502, 503})
TOO_BIG = frozenset({504, 512})
"""The query ran out of its time or memory: a smaller one may not."""

TRIES = 9
TIMEOUT_SECONDS = (10, 150)

IN_WINDOW = "timestamp >= toDateTime64({start}, 6, 'UTC') AND timestamp < toDateTime64({end}, 6, 'UTC')"
IN_SLICE = (
    "event IN {events} AND cityHash64(distinct_id) >= {low} AND cityHash64(distinct_id) <= {high}"
    " AND cityHash64(uuid) >= {uuid_low} AND cityHash64(uuid) <= {uuid_high}"
)


class QuerySource:
    """The `query` source: counts first, then slices by event and hash, checked against the counts."""

    def __init__(self, url: str, project_id: str, api_key: str, allowlist: tuple[str, ...], with_person: bool) -> None:
        self._query_url = f"{url}/api/projects/{project_id}/query/"
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Bearer {api_key}"
        self._person = ", poe.properties AS person_properties" if with_person else ""
        self._needed, self._needed_values = _needed(allowlist, with_person)

    def check(self) -> None:
        """Raises `NotExtracted` where PostHog does not take the key or the project."""
        self._query("SELECT 1", {}, lambda _: None)

    def events(self, start: datetime, end: datetime, say: Say) -> Window:
        """The window's events, counted first. Raises `NotExtracted` where PostHog refuses."""
        counts = self._counts(start, end, say)
        return Window(sum(counts.values()), self._frames(start, end, counts, say))

    def history(self, before: datetime, say: Say) -> Window:
        """All `$identify` and `$set` events before that time, month by month. Raises `NotExtracted` where PostHog refuses."""
        source = copy(self)
        source._needed, source._needed_values = " AND event IN {needed}", {"needed": ["$identify", "$set"]}
        ever = f"timestamp < toDateTime64({{end}}, 6, 'UTC'){source._needed}"
        hogql = f"SELECT count() AS events, min(timestamp) AS first FROM events WHERE {ever}"  # noqa: S608
        values = {"end": _window(before, before)["end"], **source._needed_values}
        [[count, first]] = self._query(hogql, values, say)["results"]
        months = _months(pd.Timestamp(first), before) if int(count) else iter(())
        return Window(int(count), (frame for start, end in months for frame in source.events(start, end, say).frames))

    def _frames(self, start: datetime, end: datetime, counts: dict[str, int], say: Say) -> Iterator[pd.DataFrame]:
        """The slices' rows. Raises `NotExtracted` where they do not add up to PostHog's own count."""
        expected, rows = sum(counts.values()), 0
        for frame in self._sliced(start, end, counts, say):
            rows += len(frame)
            say(f"{start:%Y-%m-%d}: {rows:,} of {expected:,} events read.")
            yield frame
        if rows != expected and rows != (recounted := sum(self._counts(start, end, say).values())):
            raise NotExtracted(
                f"PostHog gave {rows:,} events of {start:%Y-%m-%d}, but counts {recounted:,}: run the partition again."
            )

    def _counts(self, start: datetime, end: datetime, say: Say) -> dict[str, int]:
        hogql = f"SELECT event, count() AS events FROM events WHERE {IN_WINDOW}{self._needed} GROUP BY event LIMIT 50000"  # noqa: S608
        frame = self._query(hogql, {**_window(start, end), **self._needed_values}, say)
        return {str(event): int(count) for event, count in frame["results"]}

    def _sliced(self, start: datetime, end: datetime, counts: dict[str, int], say: Say) -> Iterator[pd.DataFrame]:
        """The slices' rows, three at a time; a slice that is full or too big comes back as its halves."""
        todo = deque(slices(counts))
        running: set[Future[pd.DataFrame | list[Slice]]] = set()
        with ThreadPoolExecutor(AT_ONCE) as threads:
            while todo or running:
                while todo and len(running) < AT_ONCE:
                    running.add(threads.submit(self._slice, start, end, todo.popleft(), say))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for result in [future.result() for future in done]:
                    if isinstance(result, list):
                        todo.extend(result)
                    else:
                        yield result

    def _slice(self, start: datetime, end: datetime, part: Slice, say: Say) -> pd.DataFrame | list[Slice]:
        hogql = (
            f"SELECT uuid, event, distinct_id, timestamp, created_at, properties{self._person} FROM events"  # noqa: S608
            f" WHERE {IN_WINDOW}{self._needed} AND {IN_SLICE} LIMIT {MOST_ROWS}"
        )
        values: dict[str, Any] = {
            "events": list(part.events),
            "low": part.ids[0],
            "high": part.ids[1],
            "uuid_low": part.uuids[0],
            "uuid_high": part.uuids[1],
        }
        answer = self._query(hogql, {**_window(start, end), **self._needed_values, **values}, say, may_be_too_big=True)
        if answer is None or len(answer["results"]) >= MOST_ROWS:
            return part.halves()
        return _frame(answer, start, end)

    def _query(self, hogql: str, values: dict[str, Any], say: Say, may_be_too_big: bool = False) -> Any:
        """PostHog's answer, fresh; None where the query is too big and may be."""
        body = {
            "query": {
                "kind": "HogQLQuery",
                "query": hogql,
                "values": values,
                "modifiers": {"convertToProjectTimezone": False},
            },
            "refresh": "force_blocking",
            "name": "cio_pipeline",
        }
        response = send(
            self._session,
            "POST",
            self._query_url,
            service="PostHog",
            retried=RETRIED,
            tries=TRIES,
            say=say,
            json=body,
            timeout=TIMEOUT_SECONDS,
        )
        if response.status_code in TOO_BIG and may_be_too_big:
            return None
        if response.status_code != 200:
            raise NotExtracted(_trouble(response))
        return _json(response.content)


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


def _months(first: pd.Timestamp, before: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Windows that together reach from `first` to `before`, a month each or less."""
    start = datetime(first.year, first.month, 1, tzinfo=timezone.utc)
    while start < before:
        end = min(before, (start + timedelta(days=32)).replace(day=1))
        yield start, end
        start = end


def _window(start: datetime, end: datetime) -> dict[str, str]:
    return {"start": f"{start:%Y-%m-%d %H:%M:%S.%f}", "end": f"{end:%Y-%m-%d %H:%M:%S.%f}"}


def _json(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except ValueError:
        return json.loads(content)


def _frame(answer: Any, start: datetime, end: datetime) -> pd.DataFrame:
    """The rows as `EVENT_SCHEMA` says. Raises `NotExtracted` where a timestamp lies outside the window that was asked for."""
    columns = dict(zip(answer["columns"], zip(*answer["results"], strict=True), strict=False))
    frame = pd.DataFrame({name: columns.get(name, ()) for name in ("uuid", "event", "distinct_id")}, dtype=object)
    for name in ("uuid", "event", "distinct_id"):
        frame[name] = [_text(value) for value in frame[name]]
    for name in ("timestamp", "created_at"):
        times = pd.to_datetime(pd.Series(columns.get(name, ()), dtype=object), utc=True, format="ISO8601")
        frame[name] = times.astype("datetime64[us, UTC]")
    for name in ("properties", "person_properties"):
        frame[name] = pd.Series([_json_text(value) for value in columns.get(name, [None] * len(frame))], dtype=object)
    if not frame["timestamp"].between(start, end, inclusive="left").all():
        raise NotExtracted(f"PostHog gave events of other days than {start:%Y-%m-%d}: its time zone is not honoured.")
    return frame[EVENT_SCHEMA.names]


def _text(value: Any) -> str:
    """Half a surrogate pair, which neither Parquet nor UTF-8 holds, is written as its escape."""
    return "" if value is None else str(value).encode("utf-8", "backslashreplace").decode()


def _json_text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "backslashreplace").decode()


def _trouble(response: requests.Response) -> str:
    status = response.status_code
    if status == 401:
        return "POSTHOG_PERSONAL_API_KEY is not accepted by PostHog (401)."
    if status == 403:
        return "POSTHOG_PERSONAL_API_KEY lacks the scope Query Read, or access to POSTHOG_PROJECT_ID (403)."
    if status == 404:
        return "POSTHOG_PROJECT_ID is not found at POSTHOG_HOST (404): is it the project's region?"
    if 300 <= status < 400:
        return f"POSTHOG_HOST sends elsewhere ({status}): give the address it sends to."
    return f"PostHog refused the query ({status}): {_detail(response)}"


def _detail(response: requests.Response) -> str:
    try:
        return str(response.json()["detail"])[:500]
    except (ValueError, KeyError, TypeError):
        return "no detail given."
