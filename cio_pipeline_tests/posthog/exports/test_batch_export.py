"""A day read from a batch export has each of its events exactly once, whichever run exported it, or is an error."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem

from cio_pipeline.posthog.exports import parquet as exported_parquet
from cio_pipeline.posthog.exports.batch_export import BatchExportSource
from cio_pipeline.posthog.exports.event_filter import EventFilter
from cio_pipeline.posthog.exports.folder import list_folder
from cio_pipeline.posthog.exports.parquet import matching_row_groups, read_parquet
from cio_pipeline.posthog.source import EVENT_SCHEMA, NEEDED, NotExtracted, NothingSoFar, without_duplicates
from cio_pipeline.rules import dropped_set
from cio_pipeline.sandbox.posthog.exports import SCHEMA, export, pack
from cio_pipeline_tests.bucket import CREDENTIALS
from cio_pipeline_tests.posthog.exports.stored import stored

START = datetime(2024, 5, 1, tzinfo=UTC)
END = START + timedelta(days=1)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
DAY_FILE = "2024-05-01T00:00:00+00:00-2024-05-02T00:00:00+00:00"
NEXT_FILE = "2024-05-02T00:00:00+00:00-2024-05-03T00:00:00+00:00"
DAY_FILTER = EventFilter(START, END, (), "set")


def source(folder: Path | str, late_days: int = 2, **options: Any) -> BatchExportSource:
    return BatchExportSource(str(folder), late_days, **{"allowlist": (), "attributes_from": "set", **options})


def read(found: BatchExportSource) -> pd.DataFrame:
    window = found.events(START, END)
    frames = [table.to_pandas() for table in window.frames]
    if not frames:
        return pd.DataFrame(columns=EVENT_SCHEMA.names)
    events = without_duplicates(pd.concat(frames))
    return events[events.pop(NEEDED)] if NEEDED in events else events


def numbers(events: pd.DataFrame) -> list[int]:
    return sorted(json.loads(text)["n"] for text in events["properties"])


@pytest.mark.parametrize(
    ("file_format", "compression"),
    [
        *(("parquet", codec) for codec in ("zstd", "lz4", "snappy", "gzip", "brotli", None)),
        *(("jsonl", codec) for codec in ("gzip", "brotli", None)),
    ],
)
def test_every_format_and_compression_gives_the_same_events(tmp_path: Path, file_format: str, compression: str | None) -> None:
    nested = {"$set": {"name": "Łukasz"}, "list": [1, 2.5, None, True], "n": 1}
    export(
        [stored(1, properties=nested), stored(2, at="2024-05-01T10:00:00.000001Z")],
        str(tmp_path),
        DAY,
        file_format,
        compression,
    )
    events = read(source(tmp_path, attributes_from="person"))
    assert events.columns.tolist() == EVENT_SCHEMA.names
    assert [str(time) for time in events["timestamp"]] == ["2024-05-01 10:00:00+00:00", "2024-05-01 10:00:00.000001+00:00"]
    assert json.loads(events["properties"][0]) == nested
    assert events["person_properties"].tolist() == ['{"plan":"pro"}'] * 2
    assert read(source(tmp_path))["person_properties"].isna().all()


def test_a_day_is_read_to_the_microsecond_and_simultaneous_events_are_kept(tmp_path: Path) -> None:
    times = ["2024-05-01T00:00:00Z", "2024-05-01T23:59:59.999999Z", "2024-04-30T23:59:59.999999Z", "2024-05-02T00:00:00Z"]
    export((stored(number, at=times[number % 4]) for number in range(40)), str(tmp_path))
    assert sorted(numbers(read(source(tmp_path)))) == sorted(number for number in range(40) if number % 4 < 2)


def test_with_an_hourly_export_a_day_that_is_not_over_is_readable_up_to_the_last_finished_run(tmp_path: Path) -> None:
    rows = [stored(number, at=f"2024-05-01T{number:02d}:30:00Z") for number in range(12)]
    export([stored(20, at="2024-04-30T10:00:00Z"), *rows], str(tmp_path), HOUR)
    noon, later = START + 12 * HOUR, START + 12 * HOUR + timedelta(minutes=25)
    (tmp_path / "2024-05-01T12:00:00+00:00-2024-05-01T13:00:00+00:00-0.parquet").touch()
    assert source(tmp_path).readable_until(START, later) == noon
    assert source(tmp_path).readable_until(START, noon - HOUR / 2) == noon - HOUR / 2
    found = source(tmp_path).events(START, noon)
    assert sum(len(table) for table in found.frames) == 12


def test_a_daily_export_has_nothing_of_a_day_that_is_not_over(tmp_path: Path) -> None:
    export([stored(1, at="2024-04-30T10:00:00Z")], str(tmp_path), DAY)
    with pytest.raises(NothingSoFar, match="has nothing of 2024-05-01 yet, which is not over: only one that runs every hour"):
        source(tmp_path).readable_until(START, START + 12 * HOUR)


def test_late_and_early_events_are_read_from_the_runs_in_which_they_landed(tmp_path: Path) -> None:
    late = [stored(days, at="2024-05-01T12:00:00Z", landed=f"2024-05-0{1 + days}T11:00:00Z") for days in (0, 1, 2, 3)]
    early = stored(9, at="2024-05-01T12:00:00Z", landed="2024-04-30T12:30:00Z")
    export([*late, early], str(tmp_path), HOUR)
    whole_day = [stored(20 + hour, at=f"2024-05-01T{hour:02d}:30:00Z") for hour in range(24)]
    export(whole_day, str(tmp_path), HOUR)
    found = {days: numbers(read(source(tmp_path, late_days=days))) for days in (0, 1, 2)}
    assert {days: [n for n in found[days] if n < 20] for days in found} == {0: [9], 1: [1, 9], 2: [1, 2, 9]}


def test_an_event_in_several_runs_counts_once_as_it_landed_last(tmp_path: Path) -> None:
    export([stored(1), stored(2)], str(tmp_path / "scheduled"))
    export([stored(1), stored(2)], str(tmp_path / "backfill"), file_format="jsonl", compression="gzip")
    export([stored(1, landed="2024-05-02T05:00:00Z", properties={"n": 100})], str(tmp_path / "scheduled"))
    found = source(tmp_path)
    assert numbers(read(found)) == [2, 100]
    assert sum(map(len, found.events(START, END).frames)) == 5


@pytest.mark.parametrize(("is_old", "kept"), [(False, [1, 2, 3]), (True, [1, 2, 3, 5])])
def test_only_events_that_the_settings_need_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_old: bool, kept: list[int]
) -> None:
    """If the day is old, an event may have had a `$set` when it was extracted before, so its person's email counts, even for
    `set`."""
    monkeypatch.setattr(dropped_set, "reaches_back", lambda start, now: is_old)
    rows = [
        stored(1),
        stored(2, event="$identify"),
        stored(3, event="visit", properties={"n": 3, "$set": {"email": "a@example.com"}}),
        stored(4, event="visit"),
        stored(5, event="visit", person_properties={"email": "b@example.com"}),
    ]
    for name, file_format, compression in (("a", "parquet", "zstd"), ("b", "jsonl", None)):
        export(rows, str(tmp_path / name), DAY, file_format, compression)
        found = read(source(tmp_path / name, allowlist=("order",)))
        assert numbers(found) == kept
        assert found["person_properties"].isna().all()
        assert numbers(read(source(tmp_path / name, allowlist=("order",), attributes_from="person"))) == [1, 2, 5]


def test_the_history_is_all_identify_and_set_events_in_the_files(tmp_path: Path) -> None:
    names = ["$identify", "$set", "order"]
    rows = [stored(day, f"2024-04-{day:02d}T10:00:00Z", event=names[day % 3]) for day in (2, 3, 4, 13, 24)]
    rows += [stored(9, "2024-04-30T10:00:00Z", "2024-05-02T10:00:00Z", event="$set"), stored(15, event="$set")]
    rows += [stored(20, "2024-04-20T10:00:00Z", properties={"n": 20, "$set": {"email": "a@example.com"}})]
    export(rows, str(tmp_path))
    frames = list(source(tmp_path).history(START).frames)
    assert numbers(pa.concat_tables(frames).to_pandas()) == [3, 4, 9, 13, 24]


def test_columns_are_found_by_name_and_may_contain_nulls(tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "new_field": pa.array([{"a": 1}]),
        "timestamp": pa.array([datetime(2024, 5, 1, 10)], pa.timestamp("ns")),
        "properties": pa.array([None], pa.large_string()),
        "event": pa.array(["order"]).dictionary_encode(),
        "distinct_id": ["u1"],
        "uuid": ["018F3173-7000-7421-831E-000000000001"],
    }
    pq.write_table(pa.table(columns), tmp_path / f"{DAY_FILE}.parquet.zst")
    events = read(source(tmp_path))
    assert events[["uuid", "event", "properties"]].to_numpy().tolist() == [
        ["018f3173-7000-7421-831e-000000000001", "order", "{}"]
    ]
    assert str(events["timestamp"][0]) == "2024-05-01 10:00:00+00:00"
    with pytest.raises(NotExtracted, match="no column person_properties"):
        read(source(tmp_path, attributes_from="person"))


def test_json_values_are_read_unchanged(tmp_path: Path) -> None:
    given = '{"n":1,"big":123456789012345678901234567890,"half":"\\ud800","no":NaN}'
    line = '{"uuid":"a-1","event":"or\\ud800der","distinct_id":"u","timestamp":"2024-05-01 10:00:00","properties":'
    (tmp_path / f"{DAY_FILE}.jsonl").write_text(f"{line}{given}}}\n\n")
    events = read(source(tmp_path))
    assert events["properties"][0].replace(" ", "") == given
    assert events["event"][0] == "or\ufffdder"


def test_invalid_utf8_in_properties_becomes_escapes(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{**_parquet_row(1), "properties": None}], schema=SCHEMA)
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b'{"a":"\xff"}']).buffers())
    position = table.schema.get_field_index("properties")
    pq.write_table(table.set_column(position, "properties", broken), tmp_path / f"{DAY_FILE}.parquet")
    assert read(source(tmp_path))["properties"].tolist() == ['{"a":"\\xff"}']


def _parquet_row(number: int) -> dict[str, Any]:
    at = START + HOUR
    return {**stored(number), "timestamp": at, "created_at": at, "properties": "{}", "person_properties": "{}"}


def test_a_parquet_row_without_a_time_is_kept_for_the_rules_to_refuse(tmp_path: Path) -> None:
    """Each row is in a row group of its own, whose statistics may have no time."""
    rows = [_parquet_row(1), {**_parquet_row(2), "timestamp": None}, {**_parquet_row(3), "timestamp": None, "created_at": None}]
    rows.append({**_parquet_row(4), "timestamp": None, "created_at": START + 30 * HOUR})
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / f"{DAY_FILE}.parquet", row_group_size=1)
    found = read(source(tmp_path))
    assert dict(zip(found["uuid"], found["timestamp"].dt.year, strict=True)) == {
        stored(1)["uuid"]: 2024,
        stored(2)["uuid"]: 1,
        stored(3)["uuid"]: 1,
    }


def test_a_row_without_a_uuid_is_kept_for_the_rules_to_refuse(tmp_path: Path) -> None:
    rows = [_parquet_row(1), {**_parquet_row(2), "uuid": None}]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / f"{DAY_FILE}.parquet")
    assert sorted(read(source(tmp_path))["uuid"]) == ["", _parquet_row(1)["uuid"]]


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        (".jsonl", b'{"person_id":"p@example.com"}\n', "line 1 is not an event, as it has no uuid, event"),
        (".jsonl", pack([stored(1)], "jsonl", None) + b'{"uuid":"p@exam', "line 2 is not an event"),
        (".jsonl", b"[]\n", "line 1 is not an event"),
        (".jsonl", b'"p@example.com"\n', "line 1 is not an event"),
        (".jsonl", b'\xff{"a"}\n', "line 1 is not an event"),
        (".jsonl", b"[" * 100_000, "line 1 is not an event"),
        (".jsonl.gz", pack([stored(1)] * 9, "jsonl", "gzip")[:-9], "is the file complete?"),
        (".jsonl.br", pack([stored(1)] * 9, "jsonl", "brotli")[:-2], "is the file complete?"),
        (".parquet.zst", pack([stored(1)] * 9, "parquet", "zstd")[:-9], "is the file complete?"),
        (".parquet", b"", "is the file complete?"),
    ],
)
def test_an_error_names_the_file_that_is_not_as_posthog_writes_it(
    tmp_path: Path, name: str, content: bytes, names: str
) -> None:
    (tmp_path / f"{DAY_FILE}{name}").write_bytes(content)
    with pytest.raises(NotExtracted) as error:
        read(source(tmp_path))
    assert names in str(error.value)
    assert f"{DAY_FILE}{name} cannot be read" in str(error.value)
    assert "@example.com" not in str(error.value)


def test_an_export_of_persons_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"person_id": ["p"]}), tmp_path / f"{DAY_FILE}.parquet")
    with pytest.raises(NotExtracted, match="not an export of events"):
        read(source(tmp_path))


def test_the_manifest_says_which_parts_are_read(tmp_path: Path) -> None:
    export((stored(number) for number in range(9)), str(tmp_path), parts=3)
    stale = next(tmp_path.rglob("*-2.parquet.zst"))
    stale.with_name(stale.name.replace("-2.", "-3.")).write_bytes(pack([stored(99)], "parquet", "zstd"))
    assert sorted(numbers(read(source(tmp_path)))) == list(range(9))
    stale.unlink()
    with pytest.raises(NotExtracted, match=r"-2\.parquet\.zst cannot be read"):
        read(source(tmp_path))


def test_parts_without_a_manifest_belong_to_an_unfinished_run(tmp_path: Path) -> None:
    export((stored(number) for number in range(9)), str(tmp_path), parts=3)
    next(tmp_path.rglob("*_manifest.json")).unlink()
    with pytest.raises(NotExtracted, match="of 2024-05-01 00:00 UTC to 2024-05-02 00:00 UTC is not finished"):
        read(source(tmp_path))


def test_files_of_a_failed_run_are_ignored_if_finished_runs_cover_the_day(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stale = export([stored(1)], str(tmp_path), 2 * DAY, parts=2)
    next(tmp_path.rglob("*_manifest.json")).unlink()
    export([stored(1, f"2024-05-0{day}T10:00:00Z", properties={"n": day}) for day in (1, 2)], str(tmp_path / "retried"))
    assert stale
    assert numbers(read(source(tmp_path))) == [1]
    assert any("is not finished: it has numbered parts" in text for text in caplog.messages)


@pytest.mark.parametrize("text", ["", '{"files":', "[]", '{"files": [1]}'])
def test_a_later_run_with_an_incomplete_manifest_is_logged_and_not_read(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    export([stored(1)], str(tmp_path / "a"))
    export([stored(2, landed="2024-05-02T10:00:00Z")], str(tmp_path / "b"), parts=2)
    manifest = next(tmp_path.rglob("*_manifest.json"))
    manifest.write_text(text)
    assert numbers(read(source(tmp_path))) == [1]
    assert any("2024-05-02 00:00 UTC to 2024-05-03 00:00 UTC is not finished" in text for text in caplog.messages)
    assert list(source(tmp_path).history(END).frames) == []


def test_an_incomplete_manifest_of_the_day_itself_is_an_error(tmp_path: Path) -> None:
    export([stored(1)], str(tmp_path), parts=2)
    next(tmp_path.rglob("*_manifest.json")).write_text("")
    with pytest.raises(NotExtracted, match="no manifest that can be read"):
        read(source(tmp_path))
    with pytest.raises(NotExtracted, match="no manifest that can be read"):
        source(tmp_path).history(END)


def test_an_unfinished_later_run_is_logged_and_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    export([stored(1)], str(tmp_path))
    export([stored(2, landed="2024-05-02T10:00:00Z")], str(tmp_path), parts=2)
    next(tmp_path.rglob("*_manifest.json")).unlink()
    assert numbers(read(source(tmp_path))) == [1]
    assert any("2024-05-02 00:00 UTC to 2024-05-03 00:00 UTC is not finished" in text for text in caplog.messages)


def test_hours_without_a_file_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    export(
        (stored(hour, at=f"2024-05-01T{hour:02d}:30:00Z") for hour in range(24) if hour not in (13, 14)), str(tmp_path), HOUR
    )
    assert len(read(source(tmp_path))) == 22
    assert "no file of 2024-05-01 13:00 UTC to 2024-05-01 15:00 UTC" in caplog.messages[0]


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({"2024-04-30T00:00:00+00:00-2024-05-01T23:00:00+00:00"}, "reaches only to 2024-05-01 23:00 UTC: 2024-05-01 is not"),
        ({"2024-04-29T00:00:00+00:00-2024-04-30T12:00:00+00:00"}, "reaches only to 2024-04-30 12:00 UTC"),
        ({NEXT_FILE}, "no file of 2024-05-01 00:00 UTC to 2024-05-02 00:00 UTC"),
        ({"2024-04-01T00:00:00+00:00-2024-04-02T00:00:00+00:00", NEXT_FILE}, "no file of 2024-05-01 00:00 UTC to 2024-05-02"),
        ({"2024-05-01T13:00:00+00:00-2024-05-02T00:00:00+00:00"}, "no file of 2024-05-01 00:00 UTC to 2024-05-01 13:00 UTC"),
    ],
)
def test_a_day_that_the_export_does_not_cover_is_an_error_until_an_empty_file_covers_it(
    tmp_path: Path, files: set[str], names: str
) -> None:
    for name in files:
        (tmp_path / f"{name}.jsonl").write_bytes(pack([stored(1)], "jsonl", None))
    with pytest.raises(NotExtracted, match=names.replace("+", ".")) as error:
        read(source(tmp_path))
    (tmp_path / str(error.value).split("empty file ")[1].split(" beside")[0]).touch()
    assert len(read(source(tmp_path))) == 1


def test_an_interval_may_be_in_any_time_zone_and_may_begin_with_the_first_event(tmp_path: Path) -> None:
    for name in ("None-2024-05-01T00:00:00-07:00", "2024-05-01T00:00:00-07:00-2024-05-02T00:00:00-07:00"):
        at = "2024-05-01T06:59:00Z" if name.startswith("None") else "2024-05-01T07:00:00Z"
        (tmp_path / f"{name}.jsonl").write_bytes(pack([stored(len(name), at=at)], "jsonl", None))
    assert len(read(source(tmp_path))) == 2


def test_row_groups_of_other_days_are_not_read(tmp_path: Path) -> None:
    rows = [{**_parquet_row(number), "timestamp": START + number * HOUR} for number in range(-24, 48)]
    path = tmp_path / "file.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path, row_group_size=12)
    with pq.ParquetFile(path) as file:
        assert matching_row_groups(file, DAY_FILTER) == [2, 3]
    assert sum(map(len, read_parquet(str(path), DAY_FILTER))) == 24


def test_a_large_file_is_read_in_pieces_of_limited_rows_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**_parquet_row(number), "properties": f'{{"a":"{number:0100d}"}}'} for number in range(5000)]
    path = tmp_path / "file.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    monkeypatch.setattr(exported_parquet, "PIECE_ROWS", 2000)
    assert [len(piece) for piece in read_parquet(str(path), DAY_FILTER)] == [2000, 2000, 1000]
    monkeypatch.setattr(exported_parquet, "PIECE_BYTES", 100_000)
    assert max(len(piece) for piece in read_parquet(str(path), DAY_FILTER)) < 1000


def test_memory_does_not_grow_with_the_number_of_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**_parquet_row(number), "properties": random.Random(number).randbytes(200).hex()} for number in range(40_000)]
    path = tmp_path / "file.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path, row_group_size=1000)
    monkeypatch.setattr(exported_parquet, "PIECE_ROWS", 1000)
    before = pa.total_allocated_bytes()
    assert max(pa.total_allocated_bytes() - before for _ in read_parquet(str(path), DAY_FILTER)) < 4_000_000


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("no/such/folder", "CIO_BATCH_EXPORT_URL contains no file of a PostHog batch export"),
        ("gs://bucket/exports", r"needs a package that is not installed: pip install 'cio_pipeline\[gs\]'"),
        ("az://container/exports", r"pip install 'cio_pipeline\[az\]'"),
        ("nothing://x", "CIO_BATCH_EXPORT_URL cannot be listed"),
    ],
)
def test_the_error_for_a_url_without_an_export_names_the_setting_or_the_package(url: str, names: str) -> None:
    with pytest.raises(NotExtracted, match=names):
        source(url).check()


def test_a_bucket_is_read_like_a_folder(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(NotExtracted, match="contains no file"):
        source("s3://exports/posthog").check()
    rows = [stored(number, at=f"2024-05-01T{number % 24:02d}:00:00Z") for number in range(480)]
    export(rows[:240], "s3://exports/posthog/a", HOUR, parts=2)
    export(rows[240:], "s3://exports/posthog/b", HOUR, "jsonl", "brotli")
    found = source("s3://exports/posthog")
    found.check()
    assert sorted(numbers(read(found))) == list(range(480))
    before = list_folder("s3://exports/posthog")
    export(rows[:10], "s3://exports/posthog/b", HOUR, "jsonl", "brotli")
    after = list_folder("s3://exports/posthog")
    assert before.stamps.keys() == before.sizes.keys(), "every file has a stamp"
    assert sum(after.stamps[path] != stamp for path, stamp in before.stamps.items()) == 10, (
        "the stamps of rewritten files differ"
    )
    with pytest.raises(NotExtracted, match="CIO_BATCH_EXPORT_URL"):
        source("s3://no-such-bucket/posthog").check()
