"""Parquet columns of any type that can represent an event are read; for others, the error names the file and the column."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cio_pipeline.posthog.exports.batch_export import BatchExportSource
from cio_pipeline.posthog.exports.event_filter import EventFilter
from cio_pipeline.posthog.exports.parquet import read_parquet
from cio_pipeline.posthog.source import EVENT_SCHEMA, NEEDED, NotExtracted
from cio_pipeline.rules.options import AttributesFrom
from cio_pipeline_tests.posthog.exports.stored import stored

START = datetime(2024, 5, 1, tzinfo=UTC)
END = START + timedelta(days=1)
FILE = "2024-05-01T00:00:00+00:00-2024-05-02T00:00:00+00:00.parquet"
UUIDS = [uuid.UUID(f"018f3173-7000-7421-831e-00000000000{number}") for number in range(3)]
TIMES = [datetime(2024, 5, 1, 10, number, 0, 123000 if number else 0, tzinfo=UTC) for number in range(3)]
MOMENTS = [int(time.timestamp()) * 1_000_000 + time.microsecond for time in TIMES]
TEXTS = ["order", "sign up", "Łódź"]
PROPERTIES = ['{"n":0}', '{"n":1,"$set":{"email":"a@example.com"}}', '{"n":2}']
NAIVE = [time.replace(tzinfo=None) for time in TIMES]


def table(**changed: Any) -> pa.Table:
    columns: dict[str, Any] = {
        "uuid": [str(value) for value in UUIDS],
        "event": TEXTS,
        "distinct_id": ["a", "b", "c"],
        "timestamp": pa.array(TIMES, pa.timestamp("us", "UTC")),
        "created_at": pa.array(TIMES, pa.timestamp("us", "UTC")),
        "properties": PROPERTIES,
    }
    return pa.table(columns | changed)


def read(folder: Path, rows: pa.Table, **options: Any) -> pa.Table:
    pq.write_table(rows, folder / FILE)
    return read_folder(folder, **options)


def read_folder(folder: Path, attributes_from: Any = "set", allowlist: tuple[str, ...] = ()) -> pa.Table:
    window = BatchExportSource(str(folder), 2, allowlist, attributes_from).events(START, END)
    tables = [table.filter(table[NEEDED]).drop_columns(NEEDED) if allowlist else table for table in window.frames]
    return pa.concat_tables([EVENT_SCHEMA.empty_table(), *tables])


UUID_COLUMNS = {
    "logical UUID": pa.array([value.bytes for value in UUIDS], pa.uuid()),
    "16 bytes": pa.array([value.bytes for value in UUIDS], pa.binary(16)),
    "16 bytes of any length": pa.array([value.bytes for value in UUIDS], pa.binary()),
    "16 bytes in a dictionary": pa.array([value.bytes for value in UUIDS]).dictionary_encode(),
    "FixedString(36)": pa.array([str(value).encode() for value in UUIDS], pa.binary(36)),
    "bytes of text": pa.array([str(value).encode() for value in UUIDS], pa.binary()),
    "large bytes": pa.array([str(value).encode() for value in UUIDS], pa.large_binary()),
    "capitals": pa.array([str(value).upper() for value in UUIDS]),
    "large text": pa.array([str(value) for value in UUIDS], pa.large_string()),
    "views": pa.array([str(value) for value in UUIDS], pa.string_view()),
    "dictionary": pa.array([str(value) for value in UUIDS]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", UUID_COLUMNS)
def test_uuids_of_every_type_are_read_the_same(tmp_path: Path, kind: str) -> None:
    assert read(tmp_path, table(uuid=UUID_COLUMNS[kind]))["uuid"].to_pylist() == [str(value) for value in UUIDS]


@pytest.mark.parametrize("name", ["event", "distinct_id", "properties"])
@pytest.mark.parametrize(
    "kind",
    [
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.dictionary(pa.int8(), pa.string()),
    ],
    ids=str,
)
def test_text_of_every_type_is_read_the_same(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    given = {"event": TEXTS, "distinct_id": ["a", "b", "Łódź"], "properties": PROPERTIES}[name]
    plain = pa.array([text.encode() for text in given] if "binary" in str(kind) else given)
    column = plain.dictionary_encode() if pa.types.is_dictionary(kind) else plain.cast(kind)
    assert read(tmp_path, table(**{name: column}))[name].to_pylist() == given


@pytest.mark.parametrize(
    ("name", "column", "texts"),
    [
        ("event", pa.array([b"order\0\0", b"sign up", b"x\0\0\0\0\0\0"], pa.binary(7)), ["order", "sign up", "x"]),
        ("distinct_id", pa.array([1, -2, None], pa.int64()), ["1", "-2", ""]),
        ("properties", pa.array(PROPERTIES, pa.json_()), PROPERTIES),
        ("properties", pa.nulls(3), ["{}", "{}", "{}"]),
        ("properties", pa.array(["{}", None, "{}"]), ["{}", "{}", "{}"]),
        ("distinct_id", pa.array([b"a", b"b\xff", b"c\xed\xa0\x80"]), ["a", "b\ufffd", "c\ufffd"]),
        ("properties", pa.array([b"{}", b'{"a":"\xed\xa0\x80"}', b'{"a":"\xff"}']), ["{}", '{"a":"\\ud800"}', '{"a":"\\xff"}']),
    ],
)
def test_unusual_texts_are_converted(tmp_path: Path, name: str, column: pa.Array, texts: list[str]) -> None:
    assert read(tmp_path, table(**{name: column}))[name].to_pylist() == texts


TIME_COLUMNS = {
    **{
        f"naive {unit}": pa.array(NAIVE, pa.timestamp("us")).cast(pa.timestamp(unit), safe=False)
        for unit in ("s", "ms", "us", "ns")
    },
    **{f"UTC {unit}": pa.array(TIMES, pa.timestamp(unit, "UTC"), safe=False) for unit in ("ms", "us", "ns")},
    "Berlin": pa.array(TIMES, pa.timestamp("us", "Europe/Berlin")),
    "seconds": pa.array([value // 1_000_000 for value in MOMENTS], pa.int64()),
    "seconds with fractions": pa.array([value / 1_000_000 for value in MOMENTS]),
    "milliseconds": pa.array([value // 1000 for value in MOMENTS], pa.uint64()),
    "microseconds": pa.array(MOMENTS, pa.int64()),
    "nanoseconds": pa.array([value * 1000 for value in MOMENTS], pa.int64()),
    "ISO": pa.array([time.isoformat() for time in TIMES]),
    "ISO bytes": pa.array([time.isoformat().encode() for time in TIMES]),
    "Z": pa.array([f"{time:%Y-%m-%dT%H:%M:%S.%f}Z" for time in NAIVE]),
    "space": pa.array([f"{time:%Y-%m-%d %H:%M:%S.%f}" for time in NAIVE], pa.large_string()),
    "nine digits": pa.array([f"{time:%Y-%m-%d %H:%M:%S.%f}999 UTC" for time in NAIVE]),
    "short zone": pa.array([f"{time:%Y-%m-%d %H:%M:%S.%f}+00" for time in NAIVE]),
    "elsewhere": pa.array([f"{time + timedelta(hours=5, minutes=30):%Y-%m-%dT%H:%M:%S.%f}+0530" for time in NAIVE]),
    "digits": pa.array([str(value // 1000) for value in MOMENTS]),
    "dictionary": pa.array([time.isoformat() for time in TIMES]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", TIME_COLUMNS)
@pytest.mark.parametrize("name", ["timestamp", "created_at"])
def test_times_of_every_type_are_read_the_same(tmp_path: Path, kind: str, name: str) -> None:
    whole = kind in ("naive s", "seconds")
    expected = [time.replace(microsecond=0) if whole else time for time in TIMES]
    assert read(tmp_path, table(**{name: TIME_COLUMNS[kind]}))[name].to_pylist() == expected


def test_columns_may_be_in_any_order_and_case_and_among_others(tmp_path: Path) -> None:
    rows = table()
    rows = pa.table({name.upper() if name != "event" else "Event": rows[name] for name in reversed(rows.column_names)})
    rows = rows.append_column("elements", pa.array([[{"tag": "a"}]] * 3)).append_column("team_id", pa.array([1, 1, 1]))
    found = read(tmp_path, rows)
    assert [found[name].to_pylist() for name in ("event", "timestamp", "properties")] == [TEXTS, TIMES, PROPERTIES]


def test_a_column_with_the_exact_name_is_preferred_to_one_in_another_case(tmp_path: Path) -> None:
    assert read(tmp_path, table().append_column("EVENT", pa.array(["x", "y", "z"])))["event"].to_pylist() == TEXTS


@pytest.mark.parametrize(
    ("name", "column", "names"),
    [
        ("properties", pa.array([{"n": 1}, {"n": 2}, None]), "its column properties holds struct<n: int64>, not JSON text"),
        ("properties", pa.array([[("n", 1)]] * 3, pa.map_(pa.string(), pa.int64())), "its column properties holds map<string"),
        ("properties", pa.array([["a"]] * 3), "its column properties holds list<"),
        ("properties", pa.array([1, 2, 3]), "its column properties holds int64"),
        ("uuid", pa.array([1, 2, 3]), "its column uuid holds int64, not text"),
        ("event", pa.array([True] * 3), "its column event holds bool"),
        ("distinct_id", pa.array([1.5, 2.0, 3.0]), "its column distinct_id holds double"),
        ("distinct_id", pa.array([Decimal(1)] * 3), "its column distinct_id holds decimal128"),
        ("timestamp", pa.array([date(2024, 5, 1)] * 3), "its column timestamp holds date32[day], not times"),
    ],
)
def test_the_error_names_file_and_column_if_a_type_cannot_be_converted(
    tmp_path: Path, name: str, column: pa.Array, names: str
) -> None:
    with pytest.raises(NotExtracted) as error:
        read(tmp_path, table(**{name: column}))
    assert str(error.value).startswith(f"{FILE} cannot be read: ")
    assert names in str(error.value)


def test_a_column_that_occurs_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotExtracted, match="has the column event 2 times"):
        read(tmp_path, table().append_column("event", pa.array(TEXTS)))


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("uuid", pa.array(["a", "b", "c"])),
        ("uuid", pa.nulls(3, pa.string())),
        ("uuid", pa.array([value.bytes[:15] for value in UUIDS], pa.binary(15))),
        ("timestamp", pa.array(["soon"] * 3)),
        ("timestamp", pa.nulls(3, pa.timestamp("us", "UTC"))),
    ],
)
def test_a_day_without_any_valid_uuid_or_time_is_an_error(tmp_path: Path, name: str, column: pa.Array) -> None:
    with pytest.raises(NotExtracted, match="None of 3 events in the export's files has a uuid and a time"):
        read(tmp_path, table(**{name: column}))


def test_an_unreadable_time_does_not_affect_other_events(tmp_path: Path) -> None:
    for name in ("timestamp", "created_at"):
        found = read(tmp_path, table(**{name: pa.array([str(TIMES[0]), "soon", str(TIMES[2])])}))
        assert found["timestamp"].to_pylist()[::2] == [TIMES[0], TIMES[2]]
    beyond = pa.array([MOMENTS[0] // 1000, 2**62, -(2**62)], pa.int64()).cast(pa.timestamp("ms"))
    assert read(tmp_path, table(timestamp=beyond))["timestamp"].to_pylist() == TIMES[:1]


def test_a_uuid_of_unusual_length_does_not_affect_other_events(tmp_path: Path) -> None:
    values = pa.array([UUIDS[0].bytes, b"x" * 45, UUIDS[2].bytes], pa.binary())
    assert read(tmp_path, table(uuid=values))["uuid"].to_pylist() == [str(UUIDS[0]), "x" * 45, str(UUIDS[2])]


def test_an_event_without_a_uuid_is_kept_if_others_have_one_or_if_it_is_the_only_event(tmp_path: Path) -> None:
    assert read(tmp_path, table(uuid=["a", str(UUIDS[1]), None]))["uuid"].to_pylist() == ["a", str(UUIDS[1]), ""]
    assert read(tmp_path, table(uuid=["A"] * 3).slice(0, 1))["uuid"].to_pylist() == ["a"]


def test_times_that_python_cannot_represent_are_on_other_days(tmp_path: Path) -> None:
    times = pa.array([2**62, -(2**62), MOMENTS[2]], pa.int64()).cast(pa.timestamp("us", "UTC"))
    found = read(tmp_path, table(timestamp=times, created_at=times.take(pa.array([2, 2, 0]))))
    assert found["timestamp"].to_pylist() == [TIMES[2]]
    assert found["created_at"].to_pylist()[0].year == 9999


def test_an_event_without_created_at_counts_as_ingested_when_it_happened(tmp_path: Path) -> None:
    assert read(tmp_path, table(created_at=pa.nulls(3, pa.timestamp("us", "UTC"))))["created_at"].to_pylist() == TIMES
    assert read(tmp_path, table().drop_columns(["created_at"]))["created_at"].to_pylist() == TIMES


def test_person_properties_are_optional_unless_attributes_from_is_person(tmp_path: Path) -> None:
    person = pa.array(['{"email":"p@example.com"}', None, "{}"])
    assert read(tmp_path, table(), attributes_from="auto")["person_properties"].to_pylist() == [None] * 3
    for attributes_from, expected in (("set", [None] * 3), ("auto", person.fill_null("{}").to_pylist())):
        found = read(tmp_path, table(person_properties=person), attributes_from=attributes_from)
        assert found["person_properties"].to_pylist() == expected
    with pytest.raises(NotExtracted, match="no column person_properties"):
        read(tmp_path, table(), attributes_from="person")


@pytest.mark.parametrize(("attributes_from", "kept"), [("set", [0, 1]), ("person", [0]), ("auto", [0, 1])])
def test_events_that_may_have_an_email_are_read_even_if_they_are_not_on_the_allowlist(
    tmp_path: Path, attributes_from: str, kept: list[int]
) -> None:
    person = pa.array(['{"email":"p@example.com"}', "{}", None])
    found = read(tmp_path, table(person_properties=person), attributes_from=attributes_from, allowlist=("other",))
    assert [json.loads(text)["n"] for text in found["properties"].to_pylist()] == kept


def test_an_email_is_found_even_if_its_name_is_escaped(tmp_path: Path) -> None:
    found = read(tmp_path, table(properties=['{"$set":{"\\u0065mail":"a@example.com"}}', "{}", "{}"]), allowlist=("other",))
    assert found["distinct_id"].to_pylist() == ["a"]


def test_a_file_written_by_duckdb_is_read(tmp_path: Path) -> None:
    query = f"""
        COPY (
            SELECT uuid::UUID AS uuid, event::ENUM('order', 'sign up') AS event, distinct_id, properties::JSON AS properties,
                timestamp::TIMESTAMP AS timestamp, created_at::TIMESTAMPTZ AS created_at
            FROM (VALUES
                ('{UUIDS[0]}', 'order', 'a', '{{"n":1}}', '2024-05-01 10:00:00.5', '2024-05-01 12:00:00+02'),
                ('{UUIDS[1]}', 'sign up', 'b', '{{}}', '2024-05-01 11:00:00', '2024-05-01 13:00:00+02')
            ) t(uuid, event, distinct_id, properties, timestamp, created_at)
        ) TO '{tmp_path / FILE}' (FORMAT parquet)
    """
    duckdb.sql(query)
    found = read_folder(tmp_path).to_pylist()
    assert [row["uuid"] for row in found] == [str(value) for value in UUIDS[:2]]
    assert [row["event"] for row in found] == ["order", "sign up"]
    assert [row["properties"] for row in found] == ['{"n":1}', "{}"]
    assert found[0]["timestamp"] == START + timedelta(hours=10, milliseconds=500)
    assert found[0]["created_at"] == START + timedelta(hours=10)


@pytest.mark.parametrize(
    ("days_ago", "attributes_from", "read"), [(10, "auto", False), (70, "auto", True), (10, "person", True), (70, "set", False)]
)
def test_r20_person_properties_are_read_only_if_they_may_be_used(
    tmp_path: Path, days_ago: int, attributes_from: AttributesFrom, read: bool
) -> None:
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(days=days_ago)
    event = {**stored(1, at.isoformat()), "properties": "{}", "person_properties": '{"plan":"pro"}'}
    pq.write_table(pa.Table.from_pylist([event]), tmp_path / "file.parquet")
    [events] = read_parquet(str(tmp_path / "file.parquet"), EventFilter(at, at + timedelta(hours=1), (), attributes_from))
    assert events["person_properties"].to_pylist() == (['{"plan":"pro"}'] if read else [None])
