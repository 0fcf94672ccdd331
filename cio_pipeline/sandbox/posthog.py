"""A PostHog on the loopback interface: the query API, as strict as PostHog's own, over generated or added events."""

import argparse
import hashlib
import json
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID
from zoneinfo import ZoneInfo

import duckdb
import orjson
import pyarrow as pa

from cio_pipeline.sandbox.answers import Answer, Refused
from cio_pipeline.sandbox.file_downloads import FileDownloads
from cio_pipeline.sandbox.hogql import DEFAULT_ROWS, SCHEMA, HogQLError, Statement, to_duckdb
from cio_pipeline.sandbox.legacy import EventsList
from cio_pipeline.sandbox.product import VISITORS_PER_DAY, days

Event = Mapping[str, Any]

QUERIES_AT_ONCE = 3
DAILY_BYTES = 480_000_000_000
KEPT_ANSWERS = 64
TYPES = {"UUID": "UUID", "VARCHAR": "String", "BOOLEAN": "UInt8", "INTEGER": "UInt8", "DOUBLE": "Float64"}
COLUMNS = pa.schema(
    [
        *((name, pa.string()) for name in ("uuid", "event", "distinct_id")),
        *((name, pa.timestamp("us")) for name in ("timestamp", "created_at")),
        *((name, pa.string()) for name in ("properties", "elements_chain", "person_properties")),
    ]
)
# The order of PostHog's own sort key, which is not that of time.
INSERT = """
INSERT INTO events BY NAME SELECT * REPLACE (toUUID(uuid) AS uuid) FROM added
ORDER BY timestamp::DATE, event, hash(distinct_id), hash(uuid)
"""
# What PostHog exports of an interval: what landed in it, at most seven days late and one day early.
EXPORTED = """
SELECT DISTINCT ON (uuid) * REPLACE (toString(uuid) AS uuid) FROM events WHERE created_at >= $start AND created_at < $end
AND timestamp >= $start - INTERVAL 7 DAY AND timestamp < $end + INTERVAL 1 DAY
"""
BY_DAY = "SELECT timestamp::DATE AS day, count(*) FROM events GROUP BY day ORDER BY day"


@dataclass
class Project:
    """A PostHog project: its events in DuckDB, the rules for querying them, and the account of the requests.

    `key` may query; `key` followed by `_unscoped` is known, but lacks the scope. A fourth query waits `queue_seconds`
    for its turn; each takes at least `query_seconds`. With `legacy`, it is an old PostHog: an events list and no queries.
    """

    id: str = "1"
    key: str = "phx_sandbox"
    zone: str = "UTC"
    queue_seconds: float = 30.0
    query_seconds: float = 0.0
    legacy: EventsList | None = None
    statuses: Counter[int] = field(default_factory=Counter)
    most_at_once: int = 0

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
        """Store events (as `product.days` gives them; `properties` may be JSON text) and return how many."""
        table = pa.Table.from_pylist([_row(event) for event in events], schema=COLUMNS)
        with self._lock, self._database.cursor() as cursor:
            cursor.register("added", table)
            cursor.execute(INSERT)
        return len(table)

    def exported(self, start: datetime, end: datetime) -> list[dict[str, Any]]:
        """The events of an export of this interval; their times are UTC."""
        with self._database.cursor() as cursor:
            rows = cursor.execute(EXPORTED, {"start": _naive(start), "end": _naive(end)}).fetchall()
            columns = [name for name, *_ in cursor.description]
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def authorize(self, authorization: str, project_id: str) -> None:
        """Refuse, as PostHog does, a request without a good key or for another project."""
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
        """Answer a HogQLQuery; one asked before comes from the cache unless `refresh` is force_blocking."""
        query = body.get("query") if isinstance(body, dict) else None
        if not isinstance(query, dict) or query.get("kind") != "HogQLQuery" or not isinstance(query.get("query"), str):
            raise Refused(400, "validation_error", "invalid_input", "The sandbox serves queries of kind HogQLQuery only.")
        refresh = body.get("refresh", "blocking")
        if refresh not in ("blocking", "force_blocking"):
            raise Refused(400, "validation_error", "invalid_input", f"The sandbox does not serve refresh {refresh!r}.")
        asked = {name: query.get(name) for name in ("query", "values", "modifiers")}
        cache_key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        payload = self._answers.get(cache_key)
        cached = payload is not None and refresh == "blocking"
        if payload is None or not cached:
            payload = self._run(query) | {"cache_key": cache_key, "last_refresh": datetime.now(timezone.utc)}
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
        """Note an answer of the API in the account."""
        with self._lock:
            self.statuses[status] += 1

    def account(self) -> dict[str, Any]:
        """Count the API's answers by status, and tell how many queries ran at once at most."""
        return {"requests": {str(status): n for status, n in self.statuses.items()}, "most_at_once": self.most_at_once}

    def page(self) -> str:
        """Describe the project in plain text: its events by day, in UTC."""
        with self._database.cursor() as cursor:
            counts = cursor.execute(BY_DAY).fetchall()
        lines = [f"{day}  {count:>9,}" for day, count in counts]
        return "\n".join([f"PostHog sandbox, project {self.id}, time zone {self.zone}", "", *lines, ""])

    def close(self) -> None:
        """End the queries that run, then let go of the events."""
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
        return _payload(rows, columns, zone, statement) | {"query": query, "hogql": query["query"]}

    @contextmanager
    def _turn(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._turns:
            if not self._turns.wait_for(self._is_free, self.queue_seconds):
                raise Refused(429, "throttled_error", "throttled", "Request was throttled.")
            if self._closed:
                raise Refused(503, "server_error", "error", "The sandbox is closing.")
            cursor = self._database.cursor()
            self._running.append(cursor)
            self.most_at_once = max(self.most_at_once, len(self._running))
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
            if len(self._answers) > KEPT_ANSWERS:
                del self._answers[next(iter(self._answers))]

    def _budget(self, read: int) -> dict[str, str]:
        with self._lock:
            self._bytes_read += read
            left = DAILY_BYTES - self._bytes_read
        return {"X-PostHog-Query-Bytes-Read": str(read), "X-PostHog-Query-Budget-Remaining-Bytes": str(left)}


def _row(event: Event) -> dict[str, Any]:
    return {
        "uuid": str(UUID(event["uuid"])),
        "event": _json_text(event["event"]),
        "distinct_id": _json_text(event["distinct_id"]),
        "timestamp": _utc(event["timestamp"]),
        "created_at": _utc(event.get("created_at", event["timestamp"])),
        "properties": _json_text(event.get("properties", {})),
        "elements_chain": event.get("elements_chain", ""),
        "person_properties": _json_text(event.get("person_properties") or ""),
    }


def _json_text(value: object) -> str:
    """Text as it stands, anything else as compact JSON; a lone surrogate stays an escape, as JavaScript writes it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace").decode()


def _utc(text: str) -> datetime:
    return _naive(datetime.fromisoformat(text.replace("Z", "+00:00")))


def _naive(moment: datetime) -> datetime:
    return moment.astimezone(timezone.utc).replace(tzinfo=None) if moment.tzinfo else moment


def _payload(rows: list[tuple[Any, ...]], columns: list[tuple[str, str]], zone: str, statement: Statement) -> dict[str, Any]:
    """Shape rows as PostHog answers them; only a query without a LIMIT learns whether there is more."""
    paging = {} if statement.limited else {"hasMore": len(rows) > DEFAULT_ROWS, "limit": DEFAULT_ROWS, "offset": 0}
    if not statement.limited:
        rows = rows[:DEFAULT_ROWS]
    values = [_json_values(column, kind, zone) for column, (_, kind) in zip(zip(*rows, strict=True), columns, strict=False)]
    return {
        "results": orjson.dumps(list(zip(*values, strict=True))),
        "columns": [name for name, _ in columns],
        "types": [
            [name, f"DateTime64(6, '{zone}')" if kind == "TIMESTAMP" else TYPES.get(kind, "UInt64")] for name, kind in columns
        ],
        "clickhouse": statement.sql,
        "timings": [],
        **paging,
    }


def _json_values(column: Sequence[Any], kind: str, zone: str) -> Sequence[Any]:
    """PostHog's JSON of a column: UUIDs as text (stored with their halves swapped), times with their offset."""
    if kind == "UUID":
        hexes = ("" if value is None else value.hex for value in column)
        return [str(UUID(text[16:] + text[:16])) if text else None for text in hexes]
    if kind == "BOOLEAN":
        return [None if value is None else int(value) for value in column]
    if kind != "TIMESTAMP":
        return column
    utc, local = timezone.utc, ZoneInfo(zone)
    moments = (value and value.replace(tzinfo=utc).astimezone(local).isoformat() for value in column)
    return [text and text.replace("+00:00", "Z") for text in moments]


class PostHog(ThreadingHTTPServer):
    """A project served over HTTP in a thread of its own, from its making until `close` or the end of a `with`."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, project: Project, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.project = project
        self._open: dict[threading.Thread, socket.socket] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def add(self, events: Iterable[Event]) -> int:
        """Store more events in the project."""
        return self.project.add(events)

    def close(self) -> None:
        """Stop serving, and let no thread outlive it: DuckDB complains of those at the interpreter's end."""
        self.shutdown()
        self.project.close()
        for thread, connection in list(self._open.items()):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=1)
        self.server_close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection, remembered for `close`."""
        self._open[threading.current_thread()] = request
        try:
            super().process_request_thread(request, client_address)
        finally:
            del self._open[threading.current_thread()]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: PostHog

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            answer = self._route(path.strip("/").split("/"), body)
        except Refused as refused:
            answer = Answer(orjson.dumps(refused.body), refused.status)
        except Exception as error:  # as PostHog: a bug is an answer too
            answer = Answer(orjson.dumps(Refused(500, "server_error", "error", repr(error)).body), 500)
        if path.startswith("/api/"):
            self.server.project.count(answer.status)
        kind = "application/json" if answer.content[:1] in b"{[" else "text/plain; charset=utf-8"
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Type": kind, "Content-Length": str(len(answer.content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.content)

    def _route(self, path: list[str], body: bytes) -> Answer:
        project = self.server.project
        match self.command, path:
            case "GET", ["api", "projects", project_id, "events"]:
                project.authorize(self.headers.get("Authorization", ""), project_id)
                return project.events(f"{self.server.url}{self.path}")
            case _, ["api", "projects", _, "query"] if project.legacy:
                raise Refused(404, "invalid_request", "not_found", "Endpoint not found.")
            case "POST", ["api", "projects", project_id, "query"]:
                project.authorize(self.headers.get("Authorization", ""), project_id)
                return project.query(_json_body(body))
            case _, ["api", "projects", _, "query"]:
                raise Refused(405, "invalid_request", "method_not_allowed", f'Method "{self.command}" not allowed.')
            case method, ["api", "projects", project_id, "file_download_batch_exports", *rest]:
                project.authorize(self.headers.get("Authorization", ""), project_id)
                return project.file_downloads.answer(method, rest, _json_body(body or b"{}"), self.server.url)
            case "GET", ["sandbox", "files", link]:
                return project.file_downloads.file(link, set(self.headers))
            case "POST", ["sandbox", "events"]:
                return Answer(orjson.dumps({"added": _add(project, _json_body(body))}))
            case "GET", ["sandbox", "requests"]:
                return Answer(orjson.dumps(project.account()))
            case "GET", [""]:
                return Answer(project.page().encode())
        raise Refused(404, "invalid_request", "not_found", "Endpoint not found.")


def _json_body(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise Refused(400, "validation_error", "invalid_json", f"JSON parse error - {error}") from error


def _add(project: Project, events: Iterable[Event]) -> int:
    try:
        return project.add(events)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        detail = f"These are no stored events: {error!r}"
        raise Refused(400, "validation_error", "invalid_input", detail) from error


def serve(events: Iterable[Event] = (), project: Project | None = None, port: int = 0) -> PostHog:
    """Serve a project that holds these events on a port of 127.0.0.1 (0: a free one)."""
    project = project or Project()
    project.add(events)
    return PostHog(project, port)


def main() -> None:
    """Serve generated days until SIGTERM or SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit())
    options = _options()
    events = () if options.empty else days(options.seed, options.start, options.days, options.visitors)
    legacy = EventsList(options.legacy) if options.legacy else None
    with serve(events, Project(options.project, options.key, options.timezone, legacy=legacy), options.port) as posthog:
        print(f"PostHog sandbox on {posthog.url}", flush=True)
        threading.Event().wait()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cio_pipeline.sandbox.posthog", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=date.fromisoformat, default=date(2026, 3, 1), help="the first day")
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--visitors", type=int, default=VISITORS_PER_DAY, help="new visitors a day")
    parser.add_argument("--timezone", default="UTC", help="the project's time zone")
    parser.add_argument("--key", default="phx_sandbox", help="the personal API key that may query")
    parser.add_argument("--project", default="1", help="the project's id")
    parser.add_argument("--legacy", type=int, metavar="ROWS", help="an old PostHog: no queries, an events list of such pages")
    parser.add_argument("--empty", action="store_true", help="start without events")
    return parser.parse_args()


if __name__ == "__main__":
    main()
