"""Parses the names of a batch export's files.

PostHog names them `{start}-{end}[-{part}].{parquet|jsonl}[.{compression}]` (in `get_s3_key`), and lists the parts of an
interval in `{start}-{end}_manifest.json`. Saving or copying a file may change its name: `_` or `%3A` for the colons, ` (1)` at
the end, or an extension in capitals.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

from cio_pipeline.rules.values import EPOCH

DAY = timedelta(days=1)
EXAMPLE = "2024-05-01T00:00:00+00:00-2024-05-02T00:00:00+00:00.parquet.zst"

COLON = r"[:_.;\uf03a\uff1a\ua789-]"
DATE = r"(\d{4})-(\d\d)-(\d\d)"
CLOCK = rf"[T_ ](\d\d){COLON}?(\d\d){COLON}?(\d\d)(?:\.(\d{{1,6}}))?"
MOMENT = re.compile(rf"{DATE}{CLOCK}(?:Z|([+_ -])(\d\d){COLON}?(\d\d))", re.IGNORECASE)
TIME = re.sub(r"\((?!\?)", "(?:", MOMENT.pattern)
INTERVAL = re.compile(rf"(?P<start>None|{TIME})[-_](?P<end>{TIME})", re.IGNORECASE)
COPY = r"(?: ?\(\d+\)| - copy(?: \(\d+\))?| copy(?: \d+)?)?"
CODECS = {"gz": "gzip", "gzip": "gzip", "br": "brotli", "brotli": "brotli", "zst": "zstd", "zstd": "zstd", "lz4": "lz4"}
REST = re.compile(
    rf"(?:-(?P<part>\d+))?{COPY}\.(?:parquet(?:\.(?:zst|zstd|lz4|sz|snappy|gz|gzip|br|brotli))?"
    rf"|(?:jsonl|ndjson)(?:\.(?P<codec>{'|'.join(CODECS)}))?){COPY}",
    re.IGNORECASE,
)
MANIFEST = re.compile(rf"_manifest{COPY}\.json{COPY}", re.IGNORECASE)
SIDECAR = re.compile(r"\.(?:crc|md5|sha\d*|asc|sig|etag)$", re.IGNORECASE)
"""Files that accompany another file and contain no events."""

TEMPORARY = re.compile(
    r"^[.~]|~$|\.(?:tmp|temp|part|partial|crdownload|download|opdownload|filepart|gstmp|swp|inprogress|uploading)\b"
    r"|\.(?:parquet|jsonl)(?:\.\w+)?\.[0-9a-z]{6,8}$",
    re.IGNORECASE,
)
"""How browsers and copying tools name files that they are still writing."""

DAYS = re.compile(rf"{DATE}.*?{DATE}")
DATA = re.compile(r"\.(?:parquet|jsonl|ndjson|json|csv|tsv|avro|orc|arrow)\b", re.IGNORECASE)


class FileName(NamedTuple):
    """A parsed name, which says that the file's events landed in `start` <= time < `end`.

    part: its number, if it is one of several files; kind: `parquet`, `jsonl`, `manifest`, or `other` for an unknown name;
    codec: of JSONLines, as Arrow names it; extension: such as `.parquet.zst`, the same for all files of one export.
    """

    start: datetime
    end: datetime
    part: int | None
    kind: str
    codec: str | None
    extension: str


@lru_cache(1 << 15)
def parse_name(path: str) -> FileName | None:
    """Parses a file's name. Returns None if there is no interval in it, or if the file cannot contain events."""
    name = unquote(PurePosixPath(path).name)
    if SIDECAR.search(name):
        return None
    interval = INTERVAL.search(name)
    start, end = (_parse_time(interval["start"]), _parse_time(interval["end"])) if interval else (None, None)
    if interval is None or start is None or end is None:
        return _parse_two_dates(name)
    before, rest = name[: interval.start()], name[interval.end() :]
    file, is_at_start = REST.fullmatch(rest), before.lower() in ("", "copy of ")
    if MANIFEST.fullmatch(rest) and is_at_start:
        return FileName(start, end, None, "manifest", None, "")
    if file is None or not is_at_start:
        return FileName(start, end, None, "other", None, rest)
    part, codec = file["part"], file["codec"]
    kind = "parquet" if ".parquet" in rest.lower() else "jsonl"
    return FileName(start, end, int(part) if part else None, kind, CODECS[codec.lower()] if codec else None, _extension(rest))


def looks_like_data(path: str) -> bool:
    """True if a file without an interval in its name may still contain events."""
    return DATA.search(PurePosixPath(path).name) is not None and SIDECAR.search(path) is None


def is_temporary(path: str) -> bool:
    """True if an unknown name looks like that of a file that is still being written."""
    return TEMPORARY.search(PurePosixPath(path).name) is not None


def _extension(rest: str) -> str:
    """The extension in lower case, without the part's number and without what copying has added."""
    return re.sub(COPY + "$", "", rest[rest.index(".") :].lower())


def _parse_two_dates(name: str) -> FileName | None:
    """A name of kind `other` if it has two dates, in any form, and the file may contain events."""
    days = DAYS.search(name) if DATA.search(name) else None
    if days is None:
        return None
    try:
        first, last = (_utc(*map(int, days.groups()[index : index + 3])) for index in (0, 3))
        return FileName(first - DAY, last + 2 * DAY, None, "other", None, name)
    except (ValueError, OverflowError):
        return None


def _parse_time(text: str) -> datetime | None:
    """The time in UTC; 1970 for `None`, which PostHog writes for an export of everything up to its end."""
    match = MOMENT.fullmatch(text)
    if match is None:
        return EPOCH
    *numbers, fraction, sign, hours, minutes = match.groups()
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
    try:
        local = _utc(*map(int, (*numbers, f"{fraction or 0:0<6}")))
        return local + offset if sign == "-" else local - offset
    except (ValueError, OverflowError):
        return None


def _utc(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0, micro: int = 0) -> datetime:
    return datetime(year, month, day, hour, minute, second, micro, UTC)
