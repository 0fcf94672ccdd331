"""Whatever is in the fields of an event, its day is read in both formats, and no row is lost."""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.json_text import read_leniently
from cio_pipeline.posthog.exports.batch_export import BatchExportSource
from cio_pipeline_tests.examples import examples

START = datetime(2024, 5, 1, tzinfo=UTC)
DAY = "2024-05-01T00:00:00+00:00-2024-05-02T00:00:00+00:00"
FIELDS = ("uuid", "event", "distinct_id", "properties", "person_properties", "created_at")
GOOD: dict[str, Any] = {
    "uuid": "018f3173-7000-7421-831e-000000000001",
    "event": "order",
    "distinct_id": "u1",
    "timestamp": "2024-05-01T10:00:00Z",
    "created_at": "2024-05-01T10:00:00Z",
    "properties": {},
    "person_properties": {},
}

halves = st.text(st.characters(exclude_categories=()), max_size=20)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | halves | st.just(10**30)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(halves, inner, max_size=4), max_leaves=12
)
deep = st.integers(1, 3000).map(lambda levels: "[" * levels + "]" * levels)
texts = values.map(json.dumps) | deep | st.sampled_from(["1e999", "-0", "9" * 5000, '{"a":tru}', '"\\u0000"', '{"a":1,"a":2}'])


def read(folder: Path, attributes_from: Any = "auto") -> list[dict[str, Any]]:
    window = BatchExportSource(str(folder), 2, (), attributes_from).events(START, START + timedelta(days=1))
    rows = [row for frame in window.frames for row in frame.to_pandas().to_dict("records")]
    return [{str(name): value for name, value in row.items()} for row in rows]


@examples(80)
@given(st.lists(st.tuples(st.sampled_from(FIELDS), texts), max_size=20))
def test_every_line_with_a_time_is_read_as_an_event(changes: list[tuple[str, str]]) -> None:
    lines = [json.dumps(GOOD)]
    for name, text in changes:
        fields = {field: json.dumps(value) for field, value in GOOD.items()} | {name: text}
        lines.append("{" + ",".join(f'"{field}":{value}' for field, value in fields.items()) + "}")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{DAY}.jsonl").write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
        rows = read(Path(folder))
    assert len(rows) == len(lines)
    for row in rows:
        for name in ("uuid", "event", "distinct_id", "properties"):
            row[name].encode()
        read_leniently(row["properties"])


@examples(60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(FIELDS[:5]),
            st.binary(max_size=30) | halves.map(lambda t: t.encode("utf-8", "surrogatepass")) | st.none(),
        )
    )
)
def test_every_row_with_a_time_is_read_as_an_event(changes: list[tuple[str, bytes | None]]) -> None:
    good = {name: json.dumps(value).encode() if isinstance(value, dict) else value.encode() for name, value in GOOD.items()}
    rows = [good, *({**good, name: value} for name, value in changes)]
    table = pa.table({name: pa.array([row[name] for row in rows], pa.binary()) for name in FIELDS[:5]})
    table = table.append_column("timestamp", pa.array([START] * len(rows), pa.timestamp("us", "UTC")))
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(table, Path(folder) / f"{DAY}.parquet")
        found = read(Path(folder))
    assert len(found) == len(rows)
    for row in found:
        for name in ("uuid", "event", "distinct_id", "properties", "person_properties"):
            row[name].encode()
