"""Events by PostHog Cloud's on-demand export: asked for, waited for, downloaded (`file_download_batch_exports`).

PostHog selects by when an event landed, a day is one of event time: so it is asked for from one day before the day, for clocks
that are fast, to `late_days` after it, as far as that is past. PostHog bills exported rows.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import IO, NamedTuple
from urllib.parse import quote, urljoin

import pyarrow as pa

from cio_pipeline.http import Unavailable, new_session, send
from cio_pipeline.masking import mask
from cio_pipeline.posthog.api import TIMEOUT_SECONDS, Answer, Api, refused
from cio_pipeline.posthog.exported_rows import Unreadable, Wanted, on_disk, read_parquet
from cio_pipeline.posthog.query import QuerySource
from cio_pipeline.posthog.source import NotExtracted, Say, Window, quietly
from cio_pipeline.spill import PREFIX

LONGEST_EXPORT = timedelta(weeks=1)
EARLY = timedelta(days=1)
"""PostHog exports no event that is dated further ahead of its landing."""

CLOCKS_DIFFER = timedelta(minutes=1)
"""PostHog refuses an export that ends in the future, by its own clock."""

PATH = "file_download_batch_exports"
POLL_SECONDS = 5.0
LONGEST_WAIT_SECONDS = 6 * 3600
DOWNLOAD_TRIES = 5
DOWNLOAD_PAUSE_SECONDS = 5.0
LONGEST_DOWNLOAD_SECONDS = 3600.0
FILE_BYTES = 2 << 30
"""PostHog is asked for files of 100 MB."""

FILE = {"format": "Parquet", "compression": "zstd", "max_size_mb": 100}
UNDER_WAY = ("Starting", "Running")
NO_EXPORT = "PostHog's answer is no export: is POSTHOG_HOST the address of PostHog itself?"


class Export(NamedTuple):
    """An export that PostHog has been asked for, and what it said last."""

    path: str
    status: str
    files: list[str]
    error: str


class FileDownloadSource:
    """The `file_download` source: exports of at most a week each, with what landed up to `late_days` days later."""

    def __init__(
        self, url: str, project_id: str, api_key: str, late_days: int, allowlist: tuple[str, ...], with_person: bool
    ) -> None:
        self._api, self._queries = Api(url, project_id, api_key), QuerySource(url, project_id, api_key, allowlist, with_person)
        self._late, self._allowlist, self._with_person = timedelta(days=late_days), allowlist, with_person
        self._store = new_session()
        self._store.headers.clear()

    def check(self, say: Say = quietly) -> None:
        """Raises `NotExtracted` where PostHog does not take the key or the project.

        Not every PostHog lists its exports: on 405 there are some, on 404 the first one that is asked for will tell.
        """
        answer = self._api.ask("GET", PATH, say, params={"limit": 1})
        if answer.status == 404:
            self._queries.check(say)
        elif answer.status not in (200, 405):
            raise _refused(answer)

    def history(self, before: datetime, say: Say) -> Window:
        """All `$identify` and `$set` events before that time: few events of a long time, so by HogQL (scope Query Read)."""
        return self._queries.history(before, say)

    def events(self, start: datetime, end: datetime, say: Say) -> Window:
        """The window's events; everything is downloaded and read when this returns. Raises `NotExtracted`."""
        now = datetime.now(timezone.utc).replace(microsecond=0) - CLOCKS_DIFFER
        if now < end:
            raise NotExtracted(f"{start:%Y-%m-%d} is not over yet: PostHog exports what is past.")
        wanted = Wanted(start, end, self._allowlist, self._with_person)
        weeks = _weeks(start - EARLY, min(end + self._late, now))
        return on_disk(table for first, last in weeks for table in self._exported(first, last, wanted, say))

    def _exported(self, first: datetime, last: datetime, wanted: Wanted, say: Say) -> Iterator[pa.Table]:
        export = self._finished_export(first, last, say)
        for number, file in enumerate(export.files, 1):
            with tempfile.NamedTemporaryFile(prefix=PREFIX) as local:
                self._download(f"{export.path}/download/{quote(file, safe='')}", local, say)
                try:
                    yield from read_parquet(local.name, wanted)
                except (Unreadable, pa.ArrowException, OSError) as wrong:
                    raise NotExtracted(f"A file of PostHog's export cannot be read ({type(wrong).__name__}).") from wrong
            say(f"{wanted.start:%Y-%m-%d}: {number} of {len(export.files)} files of PostHog's export read.")

    def _finished_export(self, first: datetime, last: datetime, say: Say) -> Export:
        """A completed export. One that ended otherwise is asked for once more."""
        for _ in range(2):
            export = self._awaited(self._create(first, last, say), say)
            say(f"PostHog's export of {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC: {export.status}.")
            if export.status == "Completed":
                return export
        raise NotExtracted(f"PostHog's export of {first:%Y-%m-%d %H:%M} UTC ended as {export.status} twice: {export.error}")

    def _create(self, first: datetime, last: datetime, say: Say) -> str:
        """The path of a new export. Where too many are under way in the project (429), it is waited for."""
        interval = {"data_interval_start": first.isoformat(), "data_interval_end": last.isoformat()}
        answer = self._api.ask("POST", PATH, say, json={"model": "events", "file": FILE, **interval})
        if answer.status != 202:
            raise _refused(answer)
        try:
            return f"{PATH}/{answer.response.json()['id']}"
        except (ValueError, KeyError, TypeError) as wrong:
            raise NotExtracted(NO_EXPORT) from wrong

    def _awaited(self, path: str, say: Say) -> Export:
        """The export when it has ended. It is cancelled where we do not see its end."""
        try:
            return self._ended(path, say)
        except BaseException:
            with suppress(Unavailable, NotExtracted):
                self._api.ask("POST", f"{path}/cancel", say, sleep=_once_only)
            raise

    def _ended(self, path: str, say: Say) -> Export:
        began = time.monotonic()
        export = self._look(path, say)
        while export.status in UNDER_WAY:
            if time.monotonic() - began > LONGEST_WAIT_SECONDS:
                raise NotExtracted(f"PostHog's export was still under way ({export.status}) after six hours.")
            time.sleep(POLL_SECONDS)
            export = self._look(path, say)
        if export.status == "Completed" and not export.files:
            time.sleep(POLL_SECONDS)  # the list of the files may come late
            return self._look(path, say)
        return export

    def _look(self, path: str, say: Say) -> Export:
        answer = self._api.ask("GET", path, say)
        if answer.status != 200:
            raise _refused(answer)
        try:
            status, files, error = answer.body["status"], answer.body.get("files", []), answer.body.get("error")
        except (KeyError, TypeError) as wrong:
            raise NotExtracted(NO_EXPORT) from wrong
        return Export(path, status, files, mask(str(error or "no reason given."))[:300])

    def _download(self, path: str, into: IO[bytes], say: Say) -> None:
        """Writes a file where it is asked for; a link that has expired, or broke, is asked for anew."""
        trouble = ""
        for attempt in range(DOWNLOAD_TRIES):
            time.sleep(DOWNLOAD_PAUSE_SECONDS if attempt else 0)
            redirect = self._api.ask("GET", path, say)
            if redirect.status == 400:  # "still in progress", although it was told to be completed
                trouble = str(refused(redirect))
                continue
            if not 300 <= redirect.status < 400:
                raise _refused(redirect)
            trouble = self._fetch(urljoin(redirect.response.url, redirect.response.headers["Location"]), into)
            if not trouble:
                return
        raise NotExtracted(f"A file of PostHog's export could not be downloaded in {DOWNLOAD_TRIES} tries ({trouble}).")

    def _fetch(self, link: str, into: IO[bytes]) -> str:
        """What went wrong, or an empty text. The link goes to another house, so neither the key nor a header of ours does."""
        try:
            answer = send(
                self._store,
                "GET",
                link,
                service="its file store",
                retried=(),
                tries=1,
                into=into,
                most_bytes=FILE_BYTES,
                seconds=LONGEST_DOWNLOAD_SECONDS,
                timeout=TIMEOUT_SECONDS,
            )
        except Unavailable as trouble:
            return str(trouble).rstrip(".")
        return "" if answer.status_code == 200 else f"its link answered {answer.status_code}"


def _once_only(_: float) -> None:
    raise Unavailable


def _weeks(first: datetime, last: datetime) -> Iterator[tuple[datetime, datetime]]:
    while first < last:
        end = min(first + LONGEST_EXPORT, last)
        yield first, end
        first = end


def _refused(answer: Answer) -> NotExtracted:
    if answer.status == 403:
        needed = "the scope Batch Export Write, or access to POSTHOG_PROJECT_ID"
        return NotExtracted(f"POSTHOG_PERSONAL_API_KEY lacks {needed} (403).")
    if answer.status == 404:
        return NotExtracted("POSTHOG_PROJECT_ID is not found at POSTHOG_HOST, or that PostHog has no file downloads (404).")
    return refused(answer)
