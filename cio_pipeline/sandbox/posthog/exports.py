"""Writes files as PostHog's batch exports do: events by when they landed, with the same names and compression."""

import io
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from cio_pipeline.sandbox.posthog.capture import Event

EXTENSIONS = {"zstd": ".zst", "lz4": ".lz4", "snappy": ".sz", "gzip": ".gz", "brotli": ".br", None: ""}
MIDNIGHT = datetime(2020, 1, 1, tzinfo=UTC)
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("uuid", "event", "properties", "distinct_id")),
        ("_inserted_at", pa.timestamp("us", "UTC")),
        *((name, pa.timestamp("us", "UTC")) for name in ("created_at", "timestamp")),
        *((name, pa.string()) for name in ("elements_chain", "person_properties", "person_id")),
    ]
)


def export(
    events: Iterable[Event],
    url: str,
    every: timedelta = timedelta(days=1),
    file_format: str = "parquet",
    compression: str | None = "zstd",
    parts: int = 0,
) -> list[str]:
    """Writes a file for each interval in which events landed, in a folder for the interval's end. Returns their names.

    With `parts`, each interval has that many numbered files, and a manifest.
    """
    landed: dict[datetime, list[Event]] = {}
    for event in events:
        at = _landed(event)
        landed.setdefault(MIDNIGHT + (at - MIDNIGHT) // every * every, []).append(event)
    names = []
    for start, found in sorted(landed.items()):
        interval, folder = f"{start.isoformat()}-{(start + every).isoformat()}", UPath(url) / f"{start + every:%Y/%m/%d}"
        folder.mkdir(parents=True, exist_ok=True)
        pieces = {f"-{part}": found[part::parts] for part in range(parts)} or {"": found}
        ending = f".{file_format}{EXTENSIONS[compression]}"
        for part, piece in pieces.items():
            (folder / f"{interval}{part}{ending}").write_bytes(pack(piece, file_format, compression))
        names += [f"{interval}{part}{ending}" for part in pieces]
        if parts:
            manifest = {"files": [f"{start + every:%Y/%m/%d}/{interval}{part}{ending}" for part in pieces]}
            (folder / f"{interval}_manifest.json").write_text(json.dumps(manifest))
    return names


def pack(events: Iterable[Event], file_format: str, compression: str | None) -> bytes:
    """Returns the content of a file with these events. Parquet is compressed internally, JSONLines as a whole."""
    buffer = io.BytesIO()
    if file_format == "parquet":
        table = pa.Table.from_pylist([_row(event) for event in events], schema=SCHEMA)
        pq.write_table(table, buffer, compression=compression or "none", row_group_size=10_000)
        return buffer.getvalue()
    lines = b"".join(_line(_row(event)) for event in events)
    if compression is None:
        return lines
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, compression) as stream:
        stream.write(lines)
    return packed.getvalue().to_pybytes()


def _row(event: Event) -> dict[str, Any]:
    return {
        **{name: event[name] for name in ("uuid", "event", "distinct_id")},
        **{name: _text(event.get(name)) for name in ("properties", "person_properties")},
        "timestamp": _time(event["timestamp"]),
        "created_at": _landed(event),
        "_inserted_at": _landed(event),
        "elements_chain": event.get("elements_chain", ""),
        "person_id": "018f3173-0000-0000-0000-000000000000",
    }


def _line(row: Mapping[str, Any]) -> bytes:
    """A line of JSON: objects are not text here, and times are ISO text."""
    objects = {name: orjson.Fragment(row[name] or "null") for name in ("properties", "person_properties")}
    return orjson.dumps({**row, **objects}) + b"\n"


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    return json.dumps(value, separators=(",", ":"))


def _landed(event: Event) -> datetime:
    return _time(event["created_at"] if "created_at" in event else event["timestamp"])


def _time(value: str | datetime) -> datetime:
    time = datetime.fromisoformat(value) if isinstance(value, str) else value
    return time.replace(tzinfo=time.tzinfo or UTC)
