"""The query source against a local PostHog over HTTP: every event of the window exactly once, or an error."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pandas as pd
import pyarrow as pa
import pytest

from cio_pipeline.posthog import query, reading
from cio_pipeline.posthog.client import Api
from cio_pipeline.posthog.query import QuerySource
from cio_pipeline.posthog.rows import event_frame, parse_rows
from cio_pipeline.posthog.slices import LARGEST_HASH, Slice, slices
from cio_pipeline.posthog.source import EVENT_SCHEMA, NotExtracted, without_duplicates
from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.sandbox.posthog.project import Project

START = datetime(2026, 3, 2, tzinfo=UTC)
END = START + timedelta(days=1)


def stored(number: int, name: str = "order", at: str = "2026-03-02T10:00:00.000000Z", **properties: Any) -> dict[str, Any]:
    return {
        "uuid": str(uuid.UUID(int=number + (number % 7 << 120))),
        "event": name,
        "distinct_id": f"u{number % 11}",
        "timestamp": at,
        "created_at": at,
        "properties": properties,
        "person_properties": {"n": number},
    }


@pytest.fixture
def project() -> Project:
    return Project(zone="America/Los_Angeles")


@pytest.fixture
def server(project: Project) -> Iterator[posthog.PostHog]:
    with posthog.serve(project=project) as running:
        yield running


def source(server: posthog.PostHog, key: str = "phx_sandbox", project: str = "1", **options: Any) -> QuerySource:
    return QuerySource(server.url, project, key, **{"allowlist": (), "attributes_from": "set", **options})


def read(found: QuerySource) -> pd.DataFrame:
    frames = list(found.events(START, END).frames)
    return without_duplicates(pd.concat(frames)) if frames else EVENT_SCHEMA.empty_table().to_pandas()


def rows(**values: Any) -> pd.DataFrame:
    """An answer with one row of these values."""
    row = {"uuid": "x", "event": "e", "distinct_id": "u", "timestamp": "2026-03-02T10:00:00Z", "properties": "{}", **values}
    return event_frame({name: [value] for name, value in row.items()}, START, END)


def test_an_answer_that_reports_a_failure_is_not_an_empty_day() -> None:
    body = {"columns": ["event", "events"], "results": [], "error": None}
    assert parse_rows(body, 50_000).row_count == 0
    with pytest.raises(NotExtracted, match="says that its query failed"):
        parse_rows({**body, "error": "Memory limit exceeded, for jane@example.com"}, 50_000)


def test_an_event_whose_time_cannot_be_read_is_refused_by_r14_and_does_not_stop_its_day() -> None:
    times = ["2026-03-02T10:00:00Z", None, "", "soon", 17, "2026-02-30T10:00:00Z", "0000-01-01T00:00:00Z"]
    same = {"event": "e", "distinct_id": "u", "properties": "{}"}
    columns = {name: [value] * len(times) for name, value in same.items()}
    uuids = [str(UUID(int=number)) for number in range(len(times))]
    found = event_frame({**columns, "uuid": uuids, "timestamp": times}, START, END)
    assert found["timestamp"].dt.year.tolist() == [2026, 1, 1, 1, 1, 1, 1]
    with pytest.raises(NotExtracted, match="without a time"):
        event_frame({**columns, "uuid": uuids, "timestamp": [None] * len(times)}, START, END)
    with pytest.raises(NotExtracted, match="of other days"):
        event_frame({**columns, "uuid": uuids, "timestamp": [*times[:-1], "2026-03-03T00:00:00Z"]}, START, END)


def test_a_day_is_read_to_the_microsecond_whatever_the_projects_time_zone(server: posthog.PostHog) -> None:
    inside = ["2026-03-02T00:00:00.000000Z", "2026-03-02T23:59:59.999999Z"]
    outside = ["2026-03-01T23:59:59.999999Z", "2026-03-03T00:00:00.000000Z"]
    server.add(stored(number, at=at) for number, at in enumerate(inside + outside))
    events = read(source(server))
    assert [str(time) for time in events["timestamp"]] == ["2026-03-02 00:00:00+00:00", "2026-03-02 23:59:59.999999+00:00"]
    assert events["properties"].tolist() == ["{}", "{}"]
    assert events["person_properties"].isna().all()


def test_a_query_compares_the_times_as_they_are_stored_instead_of_in_the_projects_zone(server: posthog.PostHog) -> None:
    server.add([stored(1)])
    answer = reading.Queries(Api(server.url, "1", "phx_sandbox")).ask("SELECT timestamp FROM events", {})
    assert answer.body["results"] == [["2026-03-02T10:00:00Z"]]


def test_full_slices_are_split_by_name_then_distinct_id_then_uuid(
    server: posthog.PostHog, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_ROWS", 40)
    server.add(stored(number, name=f"event {number % 3}") for number in range(1500))
    assert read(source(server))["uuid"].nunique() == 1500
    assert project.max_at_once <= 3


def test_duplicates_are_one_event(server: posthog.PostHog) -> None:
    server.add([stored(1), stored(1), stored(2)])
    assert len(read(source(server))) == 2


def test_only_events_that_the_settings_need_are_queried(server: posthog.PostHog) -> None:
    server.add(
        [
            stored(1, "order"),
            stored(2, "$identify"),
            stored(3, "visit", set={"email": "a@example.com"}),
            stored(4, "visit", set={"plan": "pro"}),
        ]
    )
    assert read(source(server, allowlist=("order",)))["event"].tolist() == ["order", "$identify", "visit"]


def test_person_properties_are_queried_if_attributes_come_from_them(server: posthog.PostHog) -> None:
    server.add([stored(1), stored(2, "visit")])
    assert read(source(server, attributes_from="person"))["person_properties"].tolist() == ['{"n":1}', '{"n":2}']
    assert len(read(source(server, attributes_from="person", allowlist=("order",)))) == 1


def test_r18_history_has_all_events_that_identify_people_before_a_day(server: posthog.PostHog) -> None:
    names = ("$identify", "$set", "order")
    at = [f"202{5 - number % 3}-{number % 12 + 1:02d}-01T00:00:00.000000Z" for number in range(90)]
    server.add([stored(number, names[number % 3], when) for number, when in enumerate(at)])
    server.add([stored(100, "$identify", "2026-03-01T23:59:59.999999Z"), stored(101, "$identify")])
    found = source(server).history(START)
    assert found.expected == 61
    assert pd.concat(found.frames)["event"].value_counts().to_dict() == {"$identify": 31, "$set": 30}


def test_a_stray_event_in_1970_takes_no_more_queries(server: posthog.PostHog, project: Project) -> None:
    server.add([stored(1, "$identify", "1970-01-01T00:00:00Z"), stored(2, "$identify", "2026-02-01T00:00:00Z")])
    found = source(server).history(START)
    assert len(pd.concat(found.frames)) == found.expected == 2
    assert project.account()["requests"] == {"200": 3}
    assert found.stats["queries"] == 3


def test_months_are_merged_into_windows_without_gaps() -> None:
    months = Counter({"197001": 1, "202501": 30_000, "202502": 9_000, "202503": 2_000, "202504": 90_000, "202512": 1})
    windows = list(query._windows(months, START))
    assert [(f"{start:%Y%m}", f"{end:%Y%m%d}") for start, end in windows] == [
        ("197001", "20250301"),
        ("202503", "20250401"),
        ("202504", "20251201"),
        ("202512", "20260302"),
    ]
    assert list(query._windows(Counter(), START)) == []


@pytest.mark.parametrize(("attributes_from", "found_there"), [("set", 2), ("auto", 2), ("person", 1)])
def test_emails_of_old_events_are_also_looked_up_in_person_properties(
    server: posthog.PostHog, attributes_from: str, found_there: int
) -> None:
    """Also with `set`: an earlier extraction knew what the event had set."""
    server.add([{**stored(1, "visit"), "person_properties": {"email": "a@example.com"}}, stored(2, "visit")])
    server.add([{**stored(3, "visit"), "properties": {"$set": {"email": "a@example.com"}}}])
    found = read(source(server, allowlist=("order",), attributes_from=attributes_from))
    assert len(found) == found_there
    assert found["person_properties"].notna().all() == (attributes_from != "set")


def test_with_auto_recent_events_are_read_without_person_properties(server: posthog.PostHog) -> None:
    young = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=5)
    server.add([stored(1, at=young.isoformat())])
    [frame] = source(server, attributes_from="auto").events(young, young + timedelta(days=1)).frames
    assert frame["person_properties"].isna().all()


def test_a_project_without_history_has_none(server: posthog.PostHog) -> None:
    server.add([stored(1, "order", "2026-03-01T00:00:00.000000Z")])
    found = source(server).history(START)
    assert (found.expected, list(found.frames)) == (0, [])


def test_a_rerun_reads_no_cached_answer(server: posthog.PostHog) -> None:
    server.add([stored(1)])
    assert len(read(source(server))) == 1
    server.add([stored(2)])
    assert len(read(source(server))) == 2


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"key": "phx_wrong"}, "POSTHOG_PERSONAL_API_KEY is not accepted"),
        ({"key": "phx_sandbox_unscoped"}, "POSTHOG_PERSONAL_API_KEY lacks the scope"),
        ({"project": "2"}, "POSTHOG_PROJECT_ID is not found"),
    ],
)
def test_wrong_settings_are_reported_without_the_key(server: posthog.PostHog, wrong: dict[str, str], names: str) -> None:
    with pytest.raises(NotExtracted, match=names) as refused:
        source(server, **wrong).check()
    assert "phx_" not in str(refused.value)


ODD_ZONES = [
    "2026-03-02T15:30:00.000000000+05:30",
    "2026-03-02T05:00:00-0500",
    "2026-03-02t10:00:00z",
    "2026-03-02 10:00:00 UTC",
    "2026-03-02T12:34:56+02:34:56",
]


@pytest.mark.parametrize(
    "value", ["2026-03-02T10:00:00Z", "2026-03-02T12:00:00.000000+02:00", "2026-03-02 10:00:00.000", *ODD_ZONES]
)
def test_times_are_read_however_posthog_writes_them(value: str) -> None:
    assert rows(timestamp=value)["timestamp"].tolist() == [START + timedelta(hours=10)]


def test_values_of_other_kinds_become_text() -> None:
    [row] = rows(uuid="018F3173-7000-7421-831E-E849E8BB6FFE", distinct_id=17, properties={"a": [1]}).to_dict("records")
    assert row["uuid"] == "018f3173-7000-7421-831e-e849e8bb6ffe"
    assert (row["distinct_id"], row["properties"]) == ("17", '{"a": [1]}')
    assert rows(distinct_id="a\ud800")["distinct_id"].tolist() == ["a\ufffd"]


ODD_TIMES: list[Any] = [
    *("2026-03-02T00:00:00-08:00x", 5.5, None, "2026-03-03T00:00:00Z", "2026-03-01T16:00:00", "", "now", True, [], {"a": 1}),
    *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-14:00", "0000-01-01T00:00:00Z", "2026-02-30T00:00:00Z"),
    *("2026-03-02T25:00:00Z", "2026-03-02T10:00:00+99:99", "+292277026596-12-04T15:30:07Z", "1" * 5000),
]


@pytest.mark.parametrize("value", ODD_TIMES)
def test_an_invalid_time_or_one_of_another_day_is_refused(value: object) -> None:
    with pytest.raises(NotExtracted, match="time"):
        rows(timestamp=value)


@pytest.mark.parametrize(
    "value", [value for value in ODD_TIMES if value not in ("2026-03-03T00:00:00Z", "2026-03-01T16:00:00")]
)
def test_an_invalid_time_of_ingestion_does_not_stop_the_day(value: object) -> None:
    assert rows(created_at=value)["created_at"].isna().all()
    assert len(without_duplicates(rows(created_at=value))) == 1


ODD_VALUES: list[Any] = [
    None,
    7,
    -1.5,
    True,
    "",
    "\x00",
    "a\ud800b",
    "\udfff",
    "é" * 5000,
    [],
    {"a": ["\ud800"]},
    10**400,
    float("nan"),
]


@pytest.mark.parametrize("value", ODD_VALUES)
@pytest.mark.parametrize("column", ["uuid", "event", "distinct_id", "properties", "person_properties"])
def test_no_value_in_a_row_stops_the_day(column: str, value: Any) -> None:
    frame = rows(**{column: value})
    written = pa.Table.from_pandas(frame, EVENT_SCHEMA)
    written.validate(full=True)
    assert len(without_duplicates(frame)) == 1


def test_an_unpaired_surrogate_is_replaced_in_names_and_kept_in_properties() -> None:
    text = '{"a":"\\ud800"}'
    [row] = rows(event="a\ud800\udc00b\udfff", distinct_id="\ud83d", properties=text, person_properties='{"\ud800":1}').to_dict(
        "records"
    )
    assert (row["event"], row["distinct_id"]) == ("a\ufffd\ufffdb\ufffd", "\ufffd")
    assert (row["properties"], row["person_properties"]) == (text, '{"\\ud800":1}')


def test_a_missing_column_is_named() -> None:
    with pytest.raises(NotExtracted, match="lacks distinct_id, properties"):
        event_frame({"uuid": [], "event": [], "timestamp": []}, START, END)


def test_slices_hold_40000_rows_and_cover_every_hash() -> None:
    found = list(slices({"small": 10, "other": 20, "large": 100_000, "full": 40_000}))
    assert found[0] == Slice(("small", "other"))
    assert found[-1] == Slice(("full",))
    large = found[1:-1]
    assert [part.events for part in large] == [("large",)] * 3
    assert large[0].ids[0] == 0
    assert large[-1].ids[1] == LARGEST_HASH
    assert all(before.ids[1] + 1 == after.ids[0] for before, after in zip(large, large[1:], strict=False))


def test_a_query_names_at_most_500_events() -> None:
    found = list(slices({f"event {number}": 1 for number in range(1201)}))
    assert [len(part.events) for part in found] == [500, 500, 201]


@pytest.mark.parametrize("seed", range(20))
def test_a_large_day_takes_no_more_queries_than_names_plus_one_per_30000_rows(seed: int) -> None:
    rng = random.Random(seed)
    counts = {f"event {number}": int(10 ** rng.uniform(0, 6.3)) for number in range(rng.randrange(1, 80))}
    counts["largest"] = 1_000_000
    assert 1 + len(list(slices(counts))) <= len(counts) + sum(counts.values()) / 30_000


@pytest.mark.parametrize(
    "part",
    [
        Slice(("a", "b", "c")),
        Slice(("a",), ids=(5, LARGEST_HASH)),
        Slice(("a",), ids=(7, 7)),
        Slice(("a",), ids=(3, 4), uuids=(9, 9)),
    ],
)
def test_the_parts_of_a_slice_cover_it_once(part: Slice) -> None:
    smaller = part.smaller()
    assert sorted(name for cut in smaller for name in cut.events)[:: len(smaller) if len(part.events) == 1 else 1] == [
        *part.events
    ]
    if len(part.events) == 1:
        assert sum(hashes(cut) for cut in smaller) == hashes(part)
        assert len(set(smaller)) == len(smaller) > 1
    by_uuid = Slice(("a",)).by_uuid(100_000)
    assert [cut.uuids[0] for cut in by_uuid] == [0, *(cut.uuids[1] + 1 for cut in by_uuid[:-1])]
    assert by_uuid[-1].uuids[1] == LARGEST_HASH


def hashes(part: Slice) -> int:
    return (part.ids[1] - part.ids[0] + 1) * (part.uuids[1] - part.uuids[0] + 1)


def test_a_single_hash_cannot_be_split() -> None:
    assert Slice(("a",), ids=(5, 5), uuids=(6, 6)).smaller() == []
    assert Slice(("a",), uuids=(6, 6)).by_uuid(100_000) == []


def test_an_empty_window_has_no_slices() -> None:
    assert list(slices({})) == []
