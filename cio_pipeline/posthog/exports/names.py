"""Parses the names of a batch export's files, which PostHog makes in `get_s3_key`, and browsers and copying may change.

A file is named `{start}-{end}[-{part}].{parquet|jsonl}[.{compression}]`, and `{start}-{end}_manifest.json` names the parts of
an interval. When saved or copied, a name may get `_` or `%3A` for the colons, ` (1)` at its end, or a suffix in capitals.
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
"""Files that accompany another one and hold no events."""

TEMPORARY = re.compile(
    r"^[.~]|~$|\.(?:tmp|temp|part|partial|crdownload|download|opdownload|filepart|gstmp|swp|inprogress|uploading)\b"
    r"|\.(?:parquet|jsonl)(?:\.\w+)?\.[0-9a-z]{6,8}$",
    re.IGNORECASE,
)
"""How browsers and copying tools name unfinished files."""

DAYS = re.compile(rf"{DATE}.*?{DATE}")
DATA = re.compile(r"\.(?:parquet|jsonl|ndjson|json|csv|tsv|avro|orc|arrow)\b", re.IGNORECASE)


class Named(NamedTuple):
    """A parsed name: when the file's events landed, `start` <= landed < `end`, and which file of that interval it is.

    part: its number; kind: `parquet`, `jsonl`, `manifest`, or `other` for an unknown name; ending: as in `_ending`.
    """

    start: datetime
    end: datetime
    part: int | None
    kind: str
    codec: str | None
    ending: str


@lru_cache(1 << 15)
def named(path: str) -> Named | None:
    """Parses a file's name. Returns None if it has no interval, or the file holds no events."""
    name = unquote(PurePosixPath(path).name)
    if SIDECAR.search(name):
        return None
    interval = INTERVAL.search(name)
    start, end = (_time(interval["start"]), _time(interval["end"])) if interval else (None, None)
    if interval is None or start is None or end is None:
        return _between_dates(name)
    rest = name[interval.end() :]
    file, begins = REST.fullmatch(rest), interval.start() == 0 or name[: interval.start()].lower() == "copy of "
    if MANIFEST.fullmatch(rest) and begins:
        return Named(start, end, None, "manifest", None, "")
    if file is None or not begins:
        return Named(start, end, None, "other", None, rest)
    part, codec = file["part"], file["codec"]
    kind = "parquet" if ".parquet" in rest.lower() else "jsonl"
    return Named(start, end, int(part) if part else None, kind, CODECS[codec.lower()] if codec else None, _ending(rest))


def looks_like_data(path: str) -> bool:
    """True if a file without an interval in its name may hold events nevertheless."""
    return DATA.search(PurePosixPath(path).name) is not None and SIDECAR.search(path) is None


def _ending(rest: str) -> str:
    """The ending without the part's number and the mark of a copy: the files of one export share it."""
    return re.sub(COPY + "$", "", rest[rest.index(".") :].lower())


def is_temporary(path: str) -> bool:
    """True if an unknown name is that of a file that is still being written."""
    return TEMPORARY.search(PurePosixPath(path).name) is not None


def _between_dates(name: str) -> Named | None:
    """An `other` name, if two dates in it are an interval that PostHog did not write, and the file may hold events."""
    days = DAYS.search(name) if DATA.search(name) else None
    if days is None:
        return None
    try:
        first, last = (_utc(*map(int, days.groups()[at : at + 3])) for at in (0, 3))
        return Named(first - DAY, last + 2 * DAY, None, "other", None, name)
    except (ValueError, OverflowError):
        return None


def _time(text: str) -> datetime | None:
    match = MOMENT.fullmatch(text)
    if match is None:
        return EPOCH
    *numbers, fraction, sign, hours, minutes = match.groups()
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
    try:
        at = _utc(*map(int, (*numbers, f"{fraction or 0:0<6}")))
        return at + offset if sign == "-" else at - offset
    except (ValueError, OverflowError):
        return None


def _utc(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0, micro: int = 0) -> datetime:
    return datetime(year, month, day, hour, minute, second, micro, UTC)
