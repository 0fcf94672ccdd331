"""JSONLines: an unusual event is read unchanged, for the rules to refuse; an error names a line that is not an event."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from cio_pipeline.posthog.exports import jsonlines
from cio_pipeline.posthog.exports.batch_export import BatchExportSource
from cio_pipeline.posthog.exports.jsonlines import raw_fields
from cio_pipeline.posthog.source import EVENT_SCHEMA, NotExtracted
from cio_pipeline.posthog.times import microseconds

START = datetime(2024, 5, 1, tzinfo=UTC)
END = START + timedelta(days=1)
FILE = "2024-05-01T00:00:00+00:00-2024-05-02T00:00:00+00:00.jsonl"
UUID = "018f3173-7000-7421-831e-000000000001"
OTHER = '{"uuid":"018f3173-7000-7421-831e-000000000002","event":"e","distinct_id":"other","timestamp":"2024-05-01T09:00:00Z"}'


def line(**changed: str | None) -> str:
    """An event's line. Each field is given as JSON, or as None to leave it out."""
    fields: dict[str, str | None] = {
        "uuid": f'"{UUID}"',
        "event": '"order"',
        "distinct_id": '"u1"',
        "timestamp": '"2024-05-01T10:00:00.000000+00:00"',
        "created_at": '"2024-05-01T10:00:01Z"',
        "properties": "{}",
        "person_properties": "{}",
    }
    fields |= changed
    return "{" + ",".join(f'"{name}":{value}' for name, value in fields.items() if value is not None) + "}"


def read(folder: Path, content: str | bytes, ending: str = "", attributes_from: Any = "set") -> pd.DataFrame:
    (folder / (FILE + ending)).write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    frames = list(BatchExportSource(str(folder), 2, (), attributes_from).events(START, END).frames)
    return pa.concat_tables(frames).to_pandas() if frames else EVENT_SCHEMA.empty_table().to_pandas()


def one(folder: Path, content: str | bytes, **options: Any) -> dict[str, Any]:
    """The one event besides `OTHER`."""
    events = read(folder, content, **options)
    assert sum(events["distinct_id"] == "other") in (0, 1)
    [row] = events[events["distinct_id"] != "other"].to_dict("records")
    return {str(name): value for name, value in row.items()}


@pytest.mark.parametrize(
    "text",
    [
        '{"a":NaN}',
        '{"$set":{"plan":Infinity}}',
        '{"a":-Infinity}',
        '{"a":1e400}',
        '{"a":' + "9" * 6000 + "}",
        '{"a":12345678901234567890.125}',
        '{"a":"\\ud800"}',
        "[" * 10_000 + "]" * 10_000,
        '{"a":' * 10_000 + "1" + "}" * 10_000,
        '{"a":' + "[" * 300 + "]" * 300 + "}",
        '{"a":tru}',
        '{"a":01}',
        '{"a":"\\q"}',
        '{"a":1,"a":NaN}',
        "NaN",
        "-",
        "{]",
    ],
)
def test_properties_that_a_rule_may_reject_are_read_unchanged(tmp_path: Path, text: str) -> None:
    event = one(tmp_path, f"{OTHER}\n{line(properties=text)}\n")
    assert event["properties"] == text
    assert (event["uuid"], event["event"], event["distinct_id"]) == (UUID, "order", "u1")
    assert one(tmp_path, f"{OTHER}\n{line(person_properties=text)}\n", attributes_from="auto")["person_properties"] == text


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ("null", "{}"),
        ('""', ""),
        ('"{\\"a\\":1}"', '{"a":1}'),
        ('"{\\"a\\":NaN}"', '{"a":NaN}'),
        ('"\\ud800"', "\\ud800"),
        ('"a\\q"', '"a\\q"'),
        ("[1]", "[1]"),
        ("5", "5"),
        ("true", "true"),
        ('{ "a" : 1 , "a" : 2 }', '{"a":2}'),
        ('{"a":1.0,"b":1e5,"c":-0.5}', '{"a":1.0,"b":100000.0,"c":-0.5}'),
        ('{"\\u0000":"\\u0000"}', '{"\\u0000":"\\u0000"}'),
        ('{"a":"}],:{\\"\\\\"}', '{"a":"}],:{\\"\\\\"}'),
        (None, "null"),
    ],
)
def test_properties_of_every_kind_are_read(tmp_path: Path, properties: str | None, expected: str) -> None:
    for more in ("", '"9999999999999999999"'):  # a long integer takes the slower parser, which gives the same
        event = one(tmp_path, line(properties=properties, extra=more or None))
        assert event["properties"].replace(" ", "") in (expected, expected.replace(".0", "").replace("100000", "1e5")) or (
            json.loads(event["properties"]) == json.loads(expected)
        )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('"Łódź"', "Łódź"),
        ('"\\ud83d\\ude00"', "\U0001f600"),
        ('"a\\ud800b"', "a\ufffdb"),
        ('"a\\udc00\\ud800"', "a\ufffd\ufffd"),
        ('"a\\u0000b"', "a\0b"),
        ('"a\tb"', "a\tb"),
        ("123", "123"),
        ("1.0", "1.0"),
        ("1" * 6000, "1" * 6000),
        ("true", "true"),
        ("null", ""),
        (None, ""),
        ('{"a":1}', '{"a":1}'),
        ("[]", "[]"),
        ('""', ""),
    ],
)
@pytest.mark.parametrize("name", ["event", "distinct_id", "uuid"])
def test_names_and_ids_of_every_kind_are_read(tmp_path: Path, name: str, value: str | None, expected: str) -> None:
    assert one(tmp_path, f"{OTHER}\n{line(**{name: value})}\n")[name] == (expected.lower() if name == "uuid" else expected)


def test_invalid_utf8_is_replaced_in_names_and_makes_properties_invalid_json(tmp_path: Path) -> None:
    content = line(event='"a?b"', properties='{"a":"?"}').encode().replace(b"?", b"\xff")
    event = one(tmp_path, content)
    assert (event["event"], event["properties"]) == ("a\ufffdb", '{"a":"\\xff"}')


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff{}\n{}\n",
        "{}\r\n{}\r\n",
        "\n\n{}\n \t\n{}",
        "  {}  \n{}",
    ],
)
def test_lines_may_end_in_any_way(tmp_path: Path, content: str) -> None:
    first, second = line(), line(uuid='"018f3173-7000-7421-831e-000000000009"')
    before, between, after = content.split("{}")
    assert sorted(read(tmp_path, before + first + between + second + after)["uuid"].str[-1]) == ["1", "9"]


TIMES = {
    "2024-05-01T10:00:00.000000+00:00": 0,
    "2024-05-01T10:00:00Z": 0,
    "2024-05-01T10:00:00z": 0,
    "2024-05-01T10:00:00": 0,
    "2024-05-01 10:00:00": 0,
    "2024-05-01 10:00:00 UTC": 0,
    "2024-05-01 10:00:00.123456": 123456,
    "2024-05-01T10:00:00.123456789Z": 123456,
    "2024-05-01T10:00:00.5Z": 500000,
    "2024-05-01T10:00:00,5Z": 500000,
    "2024-05-01T12:00:00+02:00": 0,
    "2024-05-01T12:00:00+0200": 0,
    "2024-05-01T12:00:00+02": 0,
    "2024-05-01T04:30:00-05:30": 0,
    "20240501T100000Z": 0,
    "2024-05-01T10:00Z": 0,
    "1714557600": 0,
    "1714557600.25": 250000,
    "1714557600123": 123000,
    "1714557600123456": 123456,
    "1714557600123456789": 123456,
}


@pytest.mark.parametrize("text", TIMES)
def test_times_of_every_format_are_read(text: str, tmp_path: Path) -> None:
    expected = START + timedelta(hours=10, microseconds=TIMES[text])
    values = [f'"{text}"', text] if text.replace(".", "").isdigit() else [f'"{text}"']
    for value in values:
        assert one(tmp_path, line(timestamp=value, created_at=value))["timestamp"] == expected


@pytest.mark.parametrize(
    "text", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00", "1969-12-31T23:59:59.5Z", "-62135596800"]
)
def test_times_far_in_the_past_or_future_are_on_other_days(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, f"{OTHER}\n{line(timestamp=json.dumps(text))}")["distinct_id"].tolist() == ["other"]
    assert one(tmp_path, line(created_at=json.dumps(text)))["uuid"] == UUID


@pytest.mark.parametrize(
    "value", ["soon", "", "2024-13-01", "2024-05-01T25:00:00Z", "2024", True, None, [], {}, float("nan"), float("inf")]
)
def test_a_value_that_is_not_a_time_raises_an_error(value: Any) -> None:
    with pytest.raises(ValueError, match=r"not a time|must be"):
        microseconds(value)


@pytest.mark.parametrize("created_at", ['"soon"', "null", None, "{}", "true"])
def test_an_event_without_created_at_counts_as_ingested_when_it_happened(tmp_path: Path, created_at: str | None) -> None:
    assert one(tmp_path, line(created_at=created_at))["created_at"] == START + timedelta(hours=10)


CREATED = {"that day": '"2024-05-01T12:00:00Z"', "never": "null"}


@pytest.mark.parametrize("timestamp", ['"soon"', "null", None, "{}", "true", "1e400", '"0000-00-00"', "[]"])
def test_an_event_with_an_unreadable_time_belongs_to_the_day_on_which_it_was_ingested(
    tmp_path: Path, timestamp: str | None
) -> None:
    odd = {name: one(tmp_path, line(timestamp=timestamp, created_at=at)) for name, at in CREATED.items()}
    assert {name: row["timestamp"].year for name, row in odd.items()} == {"that day": 1, "never": 1}
    assert odd["that day"]["created_at"] == START + timedelta(hours=12)
    assert pd.isna(odd["never"]["created_at"])
    other_day = line(timestamp=timestamp, created_at='"2024-05-02T12:00:00Z"')
    assert read(tmp_path, f"{OTHER}\n{other_day}")["distinct_id"].tolist() == ["other"]


@pytest.mark.parametrize(
    "bad",
    [
        "[]",
        '"p@example.com"',
        "5",
        "null",
        "{",
        "{}{}",
        "[" * 10_000,
        "\0\0\0",
        line()[:-3],
        line() + line(),
        line() + ",",
        '{"timestamp":"2024-05-01T10:00:00Z","distinct_id":"p@example.com"}',
        line(event='"a\\q"'),
        '{"a"}',
        '{"a":}',
        "{:1}",
        '{"a":1]',
    ],
)
def test_the_error_names_file_and_number_of_a_line_that_is_not_an_event(tmp_path: Path, bad: str) -> None:
    with pytest.raises(NotExtracted, match=r"\.jsonl cannot be read: its line 2 is not an event") as error:
        read(tmp_path, f"{OTHER}\n{bad}\n")
    assert "example" not in str(error.value)


def test_a_line_without_person_properties_is_an_error_only_if_they_are_required(tmp_path: Path) -> None:
    content = line(person_properties=None)
    assert pd.isna(one(tmp_path, content, attributes_from="auto")["person_properties"])
    with pytest.raises(NotExtracted, match="its line 1 is not an event, as it has no person_properties"):
        read(tmp_path, content, attributes_from="person")


def test_field_names_may_be_in_capitals(tmp_path: Path) -> None:
    names = ("uuid", "event", "distinct_id", "timestamp", "properties")
    content = line(properties='{"timestamp":1}')
    for name in names:
        content = content.replace(f'"{name}":', f'"{name.upper()}":', 1)
    assert one(tmp_path, content)["uuid"] == UUID


@pytest.mark.parametrize("codec", ["gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("is_named_compressed", [True, False])
def test_a_file_may_be_compressed_or_decompressed_without_being_renamed(
    tmp_path: Path, codec: str, is_named_compressed: bool
) -> None:
    ending = {"gzip": ".gz", "brotli": ".br", "zstd": ".zst", "lz4": ".lz4"}[codec]
    compressed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(compressed, codec) as stream:
        stream.write(line().encode())
    content = compressed.getvalue().to_pybytes()
    assert len(read(tmp_path, content, ending)) == 1
    (tmp_path / (FILE + ending)).unlink()
    if is_named_compressed:
        assert len(read(tmp_path, line(), ending)) == 1  # decompressed on its way
    elif codec != "brotli":
        assert len(read(tmp_path, content)) == 1


def test_concatenated_gzip_streams_are_one_file(tmp_path: Path) -> None:
    second = line(uuid='"018f3173-7000-7421-831e-000000000009"')
    assert len(read(tmp_path, gzip.compress(line().encode() + b"\n") + gzip.compress(second.encode()), ".gz")) == 2


@pytest.mark.parametrize(
    ("content", "ending", "names"),
    [
        (b"", ".gz", "it is empty, which a compressed file never is"),
        (b"<!DOCTYPE html><p>Log in</p>", "", "it is a web page or an error message"),
        (b"\n<?xml version='1.0'?><Error/>", ".gz", "it is a web page or an error message"),
        (b"PAR1....PAR1", "", "it is a Parquet file, but its name says JSONLines"),
        (gzip.compress(line().encode(), mtime=0)[:-8] + b"\0" * 8, ".gz", "is the file complete?"),
        (gzip.compress(line().encode(), mtime=0) + b"tail", ".gz", "is the file complete?"),
    ],
)
def test_the_error_says_what_a_file_is_if_it_is_not_jsonlines(tmp_path: Path, content: bytes, ending: str, names: str) -> None:
    with pytest.raises(NotExtracted, match=f"cannot be read: {'.*' if 'complete' in names else ''}{names.replace('?', '.')}"):
        read(tmp_path, content, ending)


def test_the_error_names_the_number_of_a_line_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonlines, "MAX_EVENT_BYTES", 1000)
    assert len(read(tmp_path, line(extra='"' + "a" * 600 + '"'))) == 1
    with pytest.raises(NotExtracted, match=r"its line 2 has more than 1,000 bytes"):
        read(tmp_path, f"{OTHER}\n{line(extra=chr(34) + 'a' * 1000 + chr(34))}")


def test_raw_fields_are_exactly_as_in_the_line() -> None:
    assert raw_fields(b'{ "a" : [1, {"b":"}"}] ,"c":"\\"", "":null }') == {"a": b'[1, {"b":"}"}]', "c": b'"\\""', "": b"null"}
    assert raw_fields(b"{}") == {}


def test_finding_raw_fields_takes_linear_time() -> None:
    for tail in (b'\\"' * 200_000, b'"' * 200_001, b"\\" * 200_001):
        with pytest.raises(ValueError, match="not an object"):
            raw_fields(b'{"a":"' + tail)
