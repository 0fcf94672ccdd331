"""PostHog's on-demand exports (`file_download_batch_exports`): asked for, waited for, found again, and downloaded."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin

import pyarrow.parquet as pq
import requests
from upath import UPath

from cio_pipeline.http_retry import Unavailable, new_session, send
from cio_pipeline.posthog.client import TIMEOUT_SECONDS, Answer, Api, refused
from cio_pipeline.posthog.source import NotExtracted

logger = logging.getLogger(__name__)

PATH = "file_download_batch_exports"
FILE = {"format": "Parquet", "compression": "zstd", "max_size_mb": 100}
POLL_SECONDS = 5.0
LONGEST_WAIT_SECONDS = 6 * 3600
LIST_SECONDS = 600.0
"""So long the list of a completed export's files is waited for; "a small delay", PostHog's code says."""

EMPTY_LIST_SECONDS = 30.0
"""So long where the list is empty, and PostHog does not say how many events there are: an export may well have none."""

TRIES = 5
PAUSE_SECONDS = 5.0
DOWNLOAD_SECONDS = 3600.0
MOST_FILE_BYTES = 4 << 30
"""PostHog is asked for files of 100 MB."""

UNDER_WAY = ("Starting", "Running")
NO_EXPORT = "PostHog's answer is no export: is POSTHOG_HOST the address of PostHog itself?"
STORE = "The store of PostHog's exports"


class Export(NamedTuple):
    """An export that PostHog has been asked for, and what it said last; None where it did not say which files or how many."""

    path: str
    status: str
    files: list[str] | None
    records: int | None
    error: str


class FileExports:
    """A project's exports. Which ones were asked for is kept in the folder `kept`, for PostHog's list does not tell of what."""

    def __init__(self, api: Api, name: str, kept: UPath | None) -> None:
        self._api, self._name, self._kept = api, name, kept
        self._store = new_session()
        self._store.headers.clear()

    def finished(self, first: datetime, last: datetime) -> Export:
        """A completed export of the interval and the list of its files: an earlier one, where its files are still there.

        One that ended otherwise is asked for once more. Raises `NotExtracted`, and `http.Unavailable`.
        """
        between = f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"
        if (earlier := self._earlier(first, last)) is not None:
            logger.info("PostHog's export of %s was made before, and is read again.", between)
            return earlier
        for _ in range(2):
            path = self._create(first, last)
            self._keep(first, last, path)
            export = self._awaited(path)
            logger.info("PostHog's export of %s: %s.", between, export.status)
            if export.status == "Completed":
                return export
        raise NotExtracted(f"PostHog's export of {first:%Y-%m-%d %H:%M} UTC ended as {export.status} twice: {export.error}")

    def more_files(self, export: Export, known: set[str]) -> list[str]:
        """The files that PostHog lists by now, beyond the known ones: waited for a while, perhaps none."""
        began = time.monotonic()
        while time.monotonic() - began < EMPTY_LIST_SECONDS:
            time.sleep(POLL_SECONDS)
            if more := [file for file in self._look(export.path).files or [] if file not in known]:
                return more
        return []

    def download(self, export: Export, file: str, into: Path) -> int:
        """Writes the Parquet file, and gives its rows; a link that has expired, or broke, is asked for anew.

        Raises `NotExtracted` where there is no whole file after some tries.
        """
        trouble = ""
        for attempt in range(TRIES):
            _pause_before(attempt)
            try:
                self._fetch(self._link(export, file), into)
                with pq.ParquetFile(into) as whole:
                    return int(whole.metadata.num_rows)
            except Unavailable as broken:
                trouble = str(broken).removesuffix(".")
            except (ValueError, OSError) as broken:  # what Arrow raises where the file is no Parquet, or cut short
                trouble = f"what came is no whole Parquet file, {into.stat().st_size:,} bytes, {type(broken).__name__}"
        raise NotExtracted(f"A file of PostHog's export could not be downloaded in {TRIES} tries ({trouble}).")

    def _earlier(self, first: datetime, last: datetime) -> Export | None:
        """An export of this interval that is completed or under way, with files that can be had."""
        for path in dict.fromkeys((*self._kept_paths(first, last), *self._listed(first, last))):
            if (export := self._usable(path)) is not None:
                return export
        return None

    def _usable(self, path: str) -> Export | None:
        try:
            export = self._look(path)
            export = self._awaited(path) if export.status in UNDER_WAY else self._with_files(export)
        except NotExtracted:
            return None
        is_there = export.status == "Completed" and all(self._is_there(export, file) for file in export.files or [])
        return export if is_there else None

    def _create(self, first: datetime, last: datetime) -> str:
        """The path of a new export. Where too many are under way in the project (429), it is waited for."""
        interval = {"data_interval_start": first.isoformat(), "data_interval_end": last.isoformat()}
        for attempt in range(2):  # each one that was made is billed, and few may be under way at once
            _pause_before(attempt)
            answer = self._api.ask("POST", PATH, json={"model": "events", "file": FILE, **interval})
            if answer.status not in (200, 201, 202):
                raise refused_export(answer)
            with suppress(ValueError, KeyError, TypeError):
                return f"{PATH}/{quote(str(answer.response.json()['id']), safe='')}"
            if listed := next(self._listed(first, last), None):
                return listed
        raise NotExtracted(NO_EXPORT)

    def _awaited(self, path: str) -> Export:
        """The export when it has ended, with its files. It is cancelled where we do not see its end."""
        try:
            return self._with_files(self._ended(path))
        except BaseException:
            with suppress(Unavailable, NotExtracted):
                self._api.ask("POST", f"{path}/cancel", tries=1)
            raise

    def _ended(self, path: str) -> Export:
        began = time.monotonic()
        export = self._look(path)
        while export.status in UNDER_WAY:
            if time.monotonic() - began > LONGEST_WAIT_SECONDS:
                raise NotExtracted(f"PostHog's export was still under way ({export.status}) after six hours.")
            time.sleep(POLL_SECONDS)
            export = self._look(path)
        return export

    def _with_files(self, export: Export) -> Export:
        """The export with the list of its files, which may come some time after it is completed."""
        began = time.monotonic()
        while export.status == "Completed" and not export.files and export.records != 0:
            is_sure = export.files is None or bool(export.records)
            if time.monotonic() - began > (LIST_SECONDS if is_sure else EMPTY_LIST_SECONDS):
                if not is_sure:
                    break
                raise NotExtracted(
                    f"PostHog's export is completed, but the list of its files did not come in {LIST_SECONDS / 60:.0f} minutes:"
                    " run the day again later."
                )
            time.sleep(POLL_SECONDS)
            export = self._look(export.path)
        return export

    def _look(self, path: str) -> Export:
        for attempt in range(TRIES):
            _pause_before(attempt)
            answer = self._api.ask("GET", path)
            if answer.status != 200:
                raise refused_export(answer)
            if (export := _export(path, answer.body, self._api.clean)) is not None:
                return export
        raise NotExtracted(NO_EXPORT)

    def _link(self, export: Export, file: str) -> str:
        """Where the file is for a while. Raises `Unavailable` where PostHog says that it is not yet."""
        answer = self._api.ask("GET", f"{export.path}/download/{quote(file, safe='')}")
        if answer.status == 400:  # "still in progress", although it was told to be completed
            raise Unavailable(str(refused(answer)))
        location = answer.response.headers.get("Location")
        if not 300 <= answer.status < 400 or not location:
            raise refused_export(answer)
        return urljoin(answer.response.url, location)

    def _fetch(self, link: str, into: Path) -> None:
        """Writes the file. The link goes to another house, so neither the key nor a header of ours does."""
        with into.open("wb") as file:
            answer = send(
                self._store,
                "GET",
                link,
                service=STORE,
                retried=(),
                tries=1,
                into=file,
                most_bytes=MOST_FILE_BYTES,
                seconds=DOWNLOAD_SECONDS,
                timeout=TIMEOUT_SECONDS,
            )
        if answer.status_code != 200:
            raise Unavailable(f"its link answered {answer.status_code}")
        size = answer.headers.get("Content-Length", "")
        if size.isdigit() and "Content-Encoding" not in answer.headers and int(size) != into.stat().st_size:
            raise Unavailable(f"it has {int(size):,} bytes, and {into.stat().st_size:,} came")

    def _is_there(self, export: Export, file: str) -> bool:
        try:
            link = self._link(export, file)
            with self._store.get(link, stream=True, allow_redirects=False, timeout=TIMEOUT_SECONDS) as answer:
                return answer.status_code == 200
        except (Unavailable, NotExtracted, requests.RequestException, ValueError):
            return False

    def _listed(self, first: datetime, last: datetime) -> Iterator[str]:
        """The exports of this interval in PostHog's list, as far as that tells of what they are."""
        try:
            answer = self._api.ask("GET", PATH, tries=1)
            found = answer.body["results"] if answer.status == 200 else []
        except (Unavailable, NotExtracted, KeyError, TypeError):
            return
        for one in found if isinstance(found, list) else []:
            if isinstance(one, dict) and one.get("model", "events") == "events" and _interval(one) == (first, last):
                yield f"{PATH}/{quote(str(one.get('id')), safe='')}"

    def _keep(self, first: datetime, last: datetime, path: str) -> None:
        if self._kept is not None:
            self._kept.mkdir(parents=True, exist_ok=True)
            self._kept_file(self._kept, first, last).write_text(path)

    def _kept_paths(self, first: datetime, last: datetime) -> list[str]:
        if self._kept is None or not (file := self._kept_file(self._kept, first, last)).exists():
            return []
        return [path] if (path := file.read_text()).startswith(f"{PATH}/") else []

    def _kept_file(self, kept: UPath, first: datetime, last: datetime) -> UPath:
        project = hashlib.sha256(self._name.encode()).hexdigest()[:12]
        return kept / f"{first:%Y%m%dT%H%M%S}-{last:%Y%m%dT%H%M%S}-{project}.txt"


def refused_export(answer: Answer) -> NotExtracted:
    """What an answer other than the wanted one means, by the setting to mend."""
    if answer.status == 403:
        needed = "the scope Batch Export Write, or access to POSTHOG_PROJECT_ID"
        return NotExtracted(f"POSTHOG_PERSONAL_API_KEY lacks {needed} (403).")
    if answer.status == 404:
        return NotExtracted("POSTHOG_PROJECT_ID is not found at POSTHOG_HOST, or that PostHog has no file downloads (404).")
    return NotExtracted(NO_EXPORT) if answer.status < 400 else refused(answer)


def _pause_before(attempt: int) -> None:
    if attempt:
        time.sleep(PAUSE_SECONDS)


def _export(path: str, body: Any, clean: Callable[[Any], str]) -> Export | None:
    """The export that PostHog tells of; None where its answer is none."""
    if not isinstance(body, dict) or not isinstance(body.get("status"), str):
        return None
    files, records = body.get("files"), body.get("records_completed")
    known = [str(file) for file in files] if isinstance(files, list) else None
    error = clean(body.get("error") or "no reason given.")[:300]
    return Export(path, clean(body["status"]), known, records if isinstance(records, int) else None, error)


def _interval(one: dict[str, Any]) -> tuple[datetime, datetime] | None:
    try:
        start, end = (str(one[f"data_interval_{name}"]).replace("Z", "+00:00") for name in ("start", "end"))
        return datetime.fromisoformat(start), datetime.fromisoformat(end)
    except (KeyError, ValueError):
        return None
