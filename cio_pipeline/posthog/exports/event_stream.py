"""The exported events of a time window as an `EventStream`, in pieces of limited size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.posthog.exports.limits import PIECE_BYTES, PIECE_ROWS
from cio_pipeline.posthog.source import EventStream, NotExtracted
from cio_pipeline.rules.values import EPOCH

EARLY = timedelta(days=1)
"""PostHog exports no event whose time is later than its landing by more than this."""

UUID = r"^(urn:uuid:|\{)?[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}\}?$"


def event_stream(tables: Iterable[pa.Table], fingerprint: str | None = None) -> EventStream:
    """Returns a stream of these events, which are read only as its frames are consumed.

    After the last frame, its iterator raises `NotExtracted` if there are several events and none has both a uuid and a time.
    """
    return EventStream(None, _merge_small(_check_any_is_valid(tables)), fingerprint=fingerprint)


def _check_any_is_valid(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yields the same tables. Raises `NotExtracted` at the end if none of several events is valid: R14 refuses single events,
    but if all of them are invalid, the files must be at fault."""
    events, any_is_valid = 0, False
    for table in tables:
        events += len(table)
        any_is_valid = any_is_valid or _has_valid_event(table)
        yield table
    if events > 1 and not any_is_valid:
        raise NotExtracted(
            f"None of {events:,} events in the export's files has a uuid and a time: are they as PostHog writes them?"
        )


def _has_valid_event(events: pa.Table) -> bool:
    has_uuid, has_time = pc.match_substring_regex(events["uuid"], UUID), pc.greater_equal(events["timestamp"], EPOCH)
    return bool(pc.any(pc.and_(has_uuid, has_time)).as_py())


def _merge_small(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yields the same rows in fewer, larger tables: many files have only one or two late events of a day."""
    piece: list[pa.Table] = []
    rows = size = 0
    for table in filter(len, tables):
        piece.append(table)
        rows, size = rows + len(table), size + table.nbytes
        if rows >= PIECE_ROWS or size >= PIECE_BYTES:
            yield pa.concat_tables(piece)
            piece, rows, size = [], 0, 0
    if rows:
        yield pa.concat_tables(piece)
