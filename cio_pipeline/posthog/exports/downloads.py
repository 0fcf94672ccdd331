"""Downloads the files of PostHog's on-demand exports, by links that expire."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urljoin

import pyarrow.parquet as pq
import requests

from cio_pipeline.http.attempt import Limits
from cio_pipeline.http.retry import RetryPolicy, Unavailable, send
from cio_pipeline.http.session import new_session
from cio_pipeline.posthog.client import TIMEOUT_SECONDS, Api, error_for
from cio_pipeline.posthog.exports.answers import Export, NotFound, export_error_for
from cio_pipeline.posthog.source import NotExtracted
from cio_pipeline.temporary_files import no_space

TRIES = 5
PAUSE_SECONDS = 5.0
LIMITS = Limits(max_bytes=4 << 30, seconds=3600.0, timeout=TIMEOUT_SECONDS)
"""The limits of a download. Exports are requested with files of at most 100 MB."""

GONE = frozenset({403, 404, 410})
"""The store's statuses for a file that was removed: Amazon's answers 403 to those who may not list its files."""

STORE = "The store of PostHog's exports"


class _IncompleteDownload(Exception):
    """A try did not give a complete file; the message says why."""


class Downloads:
    """Downloads the files of a project's exports."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._store = new_session()
        self._store.headers.clear()

    def download(self, export: Export, file: str, into: Path) -> int:
        """Writes the Parquet file, and returns its number of rows. If a link has expired or is broken, requests another one.

        Raises `NotExtracted` if several tries give no complete file, or it cannot be written, and what `Api.ask` raises after
        its own tries.
        """
        why = ""
        for attempt in range(TRIES):
            pause_before(attempt)
            try:
                link = self._link(export, file)
                with _explaining_write_errors():
                    self._fetch(link, into)
                return _count_rows(into)
            except _IncompleteDownload as error:
                why = str(error).removesuffix(".")
        raise NotExtracted(f"A file of PostHog's export could not be downloaded in {TRIES} tries ({why}).")

    def _link(self, export: Export, file: str) -> str:
        """The URL of the file, which is valid for a while."""
        answer = self._api.ask("GET", f"{export.path}/download/{quote(file, safe='')}")
        if answer.status == 400:  # "still in progress", although PostHog has said that it is completed
            raise _IncompleteDownload(str(error_for(answer)))
        location = answer.response.headers.get("Location")
        if not 300 <= answer.status < 400 or not location:
            raise export_error_for(answer)
        try:
            return urljoin(answer.response.url, location)
        except ValueError:
            raise _IncompleteDownload("PostHog's link to it is not an address") from None

    def _fetch(self, link: str, into: Path) -> None:
        """Downloads the file. The link leads to another service, so neither the key nor our headers are sent."""
        try:
            with into.open("wb") as file:
                answer = send(self._store, "GET", link, service=STORE, retry=RetryPolicy(tries=1), limits=LIMITS, into=file)
        except Unavailable as error:
            raise _IncompleteDownload(str(error)) from None
        if answer.status_code != 200:
            raise _IncompleteDownload(f"its link answered {answer.status_code}")

    def is_gone(self, export: Export, file: str) -> bool:
        """True if PostHog or its store says that the file no longer exists. Any other failure may be transient."""
        try:
            link = self._link(export, file)
            with self._store.get(link, stream=True, allow_redirects=False, timeout=TIMEOUT_SECONDS) as answer:
                return answer.status_code in GONE
        except NotFound:
            return True
        except (_IncompleteDownload, requests.RequestException, ValueError):
            return False


def _count_rows(file: Path) -> int:
    """Counts the rows of a Parquet file. Raises `_IncompleteDownload`."""
    try:
        with pq.ParquetFile(file) as parquet:
            return int(parquet.metadata.num_rows)
    except (ValueError, OSError) as error:  # raised by Arrow if the file is not Parquet, or cut short
        size = f"{file.stat().st_size:,}" if file.exists() else "no"
        raise _IncompleteDownload(f"it is not a complete Parquet file: {size} bytes, {type(error).__name__}") from None


@contextmanager
def _explaining_write_errors() -> Iterator[None]:
    """Raises `NotExtracted` if the file cannot be written. No other error of a download is an `OSError`."""
    try:
        yield
    except OSError as error:
        sentence = f"A file of PostHog's export cannot be written: {error.strerror}."
        raise NotExtracted(no_space(error) or sentence) from None


def pause_before(attempt: int) -> None:
    """Sleeps before each try except the first, which is number 0."""
    if attempt:
        time.sleep(PAUSE_SECONDS)
