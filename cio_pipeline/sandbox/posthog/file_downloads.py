"""PostHog's file download exports: created, polled, and downloaded by a redirect to a store that accepts no key."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import orjson

from cio_pipeline.sandbox.posthog.answers import Answer, Refused
from cio_pipeline.sandbox.posthog.capture import Event
from cio_pipeline.sandbox.posthog.exports import pack

LONGEST = timedelta(weeks=1)


@dataclass
class Run:
    """An export. polls: it is still running for that many requests."""

    start: datetime
    end: datetime
    ends_as: str
    polls: int
    cancelled: bool = False
    files: list[str] = field(default_factory=list)


@dataclass
class FileDownloads:
    """The exports of a project, and the faults to simulate.

    exported: returns the events of an interval; at_once: the exports that may run at once; polls: as in `Run`; file_rows: the
    most rows in a file; ends_as: the statuses of the next exports, in order; expired: how many links the store refuses next.
    """

    exported: Callable[[datetime, datetime], list[Event]]
    at_once: int = 3
    polls: int = 1
    file_rows: int = 10_000
    ends_as: list[str] = field(default_factory=list)
    expired: int = 0
    runs: dict[str, Run] = field(default_factory=dict)
    _files: dict[str, bytes] = field(default_factory=dict)
    _links: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, method: str, path: list[str], body: Any, url: str) -> Answer:
        """Answers a request below `file_download_batch_exports/`. url: where its links lead."""
        with self._lock:
            match method, path:
                case "POST", []:
                    return self._create(body)
                case "GET", []:
                    found = [{"id": name, "status": self._status(run)} for name, run in self.runs.items()]
                    return Answer(orjson.dumps({"results": found}))
                case "GET", [name]:
                    return self._retrieve(self._run(name))
                case "POST", [name, "cancel"]:
                    return self._cancel(self._run(name))
                case "GET", [name, "download", file] if file in self._run(name).files:
                    link = str(uuid4())
                    self._links[link] = file
                    return Answer(b"", 302, {"Location": f"{url}/sandbox/files/{link}", "Cache-Control": "no-store"})
        raise Refused(404, "invalid_request", "not_found", "Not found.")

    def file(self, link: str, headers: Collection[str]) -> Answer:
        """Answers a request to the store. Like Amazon's, it refuses a signed link that is requested with a key."""
        if {"authorization", "cookie"} & {name.lower() for name in headers}:
            return Answer(b"Only one auth mechanism allowed", 400)
        if link not in self._links or self.expired:
            self.expired = max(0, self.expired - 1)
            return Answer(b"Request has expired", 403)
        return Answer(self._files[self._links.pop(link)])

    def _create(self, body: Any) -> Answer:
        start, end = (_time(body, name) for name in ("data_interval_start", "data_interval_end"))
        is_supported = body.get("model") == "events" and body.get("file", {}).get("format") == "Parquet"
        if not is_supported or start > end or end - start > LONGEST or end > datetime.now(UTC):
            raise Refused(
                400, "validation_error", "invalid_input", "No such export, or its interval is too long or in the future."
            )
        if sum(self._status(run) == "Running" for run in self.runs.values()) >= self.at_once:
            detail = "Too many concurrent file download batch exports for this team."
            raise Refused(429, "throttled_error", "too_many_concurrent_file_downloads", detail)
        run = Run(start, end, self.ends_as.pop(0) if self.ends_as else "Completed", self.polls)
        if run.ends_as == "Completed":
            rows = self.exported(start, end)
            for first in range(0, len(rows), self.file_rows):
                run.files.append(str(uuid4()))
                self._files[run.files[-1]] = pack(rows[first : first + self.file_rows], "parquet", "zstd")
        name = str(uuid4())
        self.runs[name] = run
        return Answer(orjson.dumps({"id": name}), 202)

    def _retrieve(self, run: Run) -> Answer:
        status = self._status(run)
        run.polls -= 1
        extra = {"Completed": {"files": run.files}, "Running": {}, "Cancelled": {}}.get(status, {"error": "It went wrong."})
        return Answer(orjson.dumps({"status": status, **extra}))

    def _cancel(self, run: Run) -> Answer:
        if self._status(run) != "Running":
            raise Refused(
                400, "validation_error", "invalid_input", f"Cannot cancel a run that is in '{self._status(run)}' status"
            )
        run.cancelled = True
        return Answer(orjson.dumps({"status": "Cancelled"}))

    def _status(self, run: Run) -> str:
        return "Cancelled" if run.cancelled else "Running" if run.polls > 0 else run.ends_as

    def _run(self, name: str) -> Run:
        if name not in self.runs:
            raise Refused(404, "invalid_request", "not_found", "Not found.")
        return self.runs[name]


def _time(body: Any, name: str) -> datetime:
    try:
        return datetime.fromisoformat(body[name])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Refused(400, "validation_error", "invalid_input", f"{name} is not a time.") from error
