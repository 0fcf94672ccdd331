"""A PostHog project: checks keys, and answers queries about its events, within limits."""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

import duckdb
import orjson

from cio_pipeline.sandbox.posthog import events_table
from cio_pipeline.sandbox.posthog.answers import Answer, Refused
from cio_pipeline.sandbox.posthog.capture import Event
from cio_pipeline.sandbox.posthog.file_downloads import FileDownloads
from cio_pipeline.sandbox.posthog.hogql import SCHEMA, HogQLError, to_duckdb
from cio_pipeline.sandbox.posthog.legacy import EventsList
from cio_pipeline.sandbox.posthog.query_results import query_results

QUERIES_AT_ONCE = 3
DAILY_BYTES = 480_000_000_000
CACHED_ANSWERS = 64


@dataclass
class Project:
    """A PostHog project: its events, the rules for querying them, and counts of the requests.

    `key` may query; `key` followed by `_unscoped` is valid, but lacks the scope. A fourth query waits `queue_seconds` for its
    turn; each takes at least `query_seconds`. With `legacy`, it is an old PostHog, with an events list and no queries.
    """

    id: str = "1"
    key: str = "phx_sandbox"
    zone: str = "UTC"
    queue_seconds: float = 30.0
    query_seconds: float = 0.0
    legacy: EventsList | None = None
    statuses: Counter[int] = field(default_factory=Counter)
    max_at_once: int = 0

    def __post_init__(self) -> None:
        self._database = duckdb.connect(config={"enable_external_access": False})
        for statement in SCHEMA:
            self._database.execute(statement)
        self._lock = threading.Lock()
        self._turns = threading.Condition()
        self._running: list[duckdb.DuckDBPyConnection] = []
        self._closed = False
        self._bytes_read = 0
        self._answers: dict[str, dict[str, Any]] = {}
        self.file_downloads = FileDownloads(self.exported)

    def add(self, events: Iterable[Event]) -> int:
        """Stores events (as `product.days` returns them; `properties` may be JSON text). Returns how many."""
        table = events_table.to_table(events)
        with self._lock, self._database.cursor() as cursor:
            events_table.insert(cursor, table)
        return len(table)

    def drop_old_sets(self, now: datetime) -> int:
        """Drops `$set` and `$set_once` of events over 60 days old at `now`, as PostHog does. Returns how many have lost one."""
        with self._lock, self._database.cursor() as cursor:
            dropped = events_table.drop_old_sets(cursor, now)
            self._answers.clear()
        return dropped

    def exported(self, start: datetime, end: datetime) -> list[dict[str, Any]]:
        """Returns the events of an export of this interval, with times in UTC."""
        with self._database.cursor() as cursor:
            return events_table.exported(cursor, start, end)

    def authorize(self, authorization: str, project_id: str) -> None:
        """Raises `Refused`, as PostHog answers, without a valid key or for another project."""
        key = authorization.removeprefix("Bearer ")
        if not authorization:
            detail = "Authentication credentials were not provided."
            raise Refused(401, "authentication_error", "not_authenticated", detail)
        if key not in (self.key, f"{self.key}_unscoped"):
            detail = "Personal API key found in request Authorization header is invalid."
            raise Refused(401, "authentication_error", "authentication_failed", detail)
        if key != self.key:
            detail = "API key missing required scope 'query:read'"
            raise Refused(403, "authentication_error", "permission_denied", detail)
        if project_id != self.id:
            raise Refused(404, "invalid_request", "not_found", "Project not found.")

    def query(self, body: Any) -> Answer:
        """Answers a HogQLQuery; a repeated one from the cache, unless `refresh` is force_blocking."""
        query = body.get("query") if isinstance(body, dict) else None
        if not isinstance(query, dict) or query.get("kind") != "HogQLQuery" or not isinstance(query.get("query"), str):
            raise Refused(400, "validation_error", "invalid_input", "The sandbox serves queries of kind HogQLQuery only.")
        refresh = body.get("refresh", "blocking")
        if refresh not in ("blocking", "force_blocking"):
            raise Refused(400, "validation_error", "invalid_input", f"The sandbox does not serve refresh {refresh!r}.")
        asked = {name: query.get(name) for name in ("query", "values", "modifiers")}
        cache_key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        payload = self._answers.get(cache_key) if refresh == "blocking" else None
        cached = payload is not None
        if payload is None:
            payload = self._run(query) | {"cache_key": cache_key, "last_refresh": datetime.now(UTC)}
            self._keep(cache_key, payload)
        headers = self._budget(0 if cached else len(payload["results"]))
        shown = {"results": orjson.Fragment(payload["results"]), "is_cached": cached}
        return Answer(orjson.dumps(payload | shown), headers=headers)

    def events(self, url: str) -> Answer:
        """Answer a page of the events list, as new a PostHog's unless it is `legacy`."""
        address, _, parameters = url.partition("?")
        with self._database.cursor() as cursor:
            return Answer(orjson.dumps((self.legacy or EventsList()).page(cursor, address, dict(parse_qsl(parameters)))))

    def count(self, status: int) -> None:
        """Counts an answer of the API."""
        with self._lock:
            self.statuses[status] += 1

    def account(self) -> dict[str, Any]:
        """Returns the number of the API's answers by status, and the most queries that ran at once."""
        return {"requests": {str(status): n for status, n in self.statuses.items()}, "max_at_once": self.max_at_once}

    def page(self) -> str:
        """Returns a page in plain text: the project's events by day, in UTC."""
        with self._database.cursor() as cursor:
            counts = events_table.count_by_day(cursor)
        lines = [f"{day}  {count:>9,}" for day, count in counts]
        return "\n".join([f"PostHog sandbox, project {self.id}, time zone {self.zone}", "", *lines, ""])

    def close(self) -> None:
        """Interrupts running queries, and closes the database."""
        with self._turns:
            self._closed = True
            self._turns.notify_all()
            while self._running:
                for cursor in self._running:
                    cursor.interrupt()
                self._turns.wait(0.05)
        self._database.close()
        del self._database

    def _run(self, query: Mapping[str, Any]) -> dict[str, Any]:
        keeps_utc = (query.get("modifiers") or {}).get("convertToProjectTimezone") is False
        zone = "UTC" if keeps_utc else self.zone
        try:
            statement = to_duckdb(query["query"], query.get("values") or {}, zone)
            with self._turn() as cursor:
                rows = cursor.execute(statement.sql).fetchall()
                columns = [(name, str(kind)) for name, kind, *_ in cursor.description]
        except HogQLError as error:
            raise Refused(400, "validation_error", error.code, str(error)) from error
        except duckdb.Error as error:
            raise Refused(400, "validation_error", "hogql_query_error", str(error).splitlines()[0]) from error
        return query_results(rows, columns, zone, statement) | {"query": query, "hogql": query["query"]}

    @contextmanager
    def _turn(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._turns:
            if not self._turns.wait_for(self._is_free, self.queue_seconds):
                raise Refused(429, "throttled_error", "throttled", "Request was throttled.")
            if self._closed:
                raise Refused(503, "server_error", "error", "The sandbox is closing.")
            cursor = self._database.cursor()
            self._running.append(cursor)
            self.max_at_once = max(self.max_at_once, len(self._running))
        try:
            time.sleep(self.query_seconds)
            yield cursor
        finally:
            with self._turns:
                self._running.remove(cursor)
                cursor.close()
                self._turns.notify()

    def _is_free(self) -> bool:
        return self._closed or len(self._running) < QUERIES_AT_ONCE

    def _keep(self, cache_key: str, payload: dict[str, Any]) -> None:
        with self._lock:
            self._answers[cache_key] = payload
            if len(self._answers) > CACHED_ANSWERS:
                del self._answers[next(iter(self._answers))]

    def _budget(self, read: int) -> dict[str, str]:
        with self._lock:
            self._bytes_read += read
            left = DAILY_BYTES - self._bytes_read
        return {"X-PostHog-Query-Bytes-Read": str(read), "X-PostHog-Query-Budget-Remaining-Bytes": str(left)}
