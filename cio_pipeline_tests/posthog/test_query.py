"""The query source against a local PostHog over HTTP: every event of the window exactly once, or an error."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pandas as pd
import pytest

from cio_pipeline.posthog import query
from cio_pipeline.posthog.query import QuerySource
from cio_pipeline.posthog.rows import event_frame
from cio_pipeline.posthog.slices import LARGEST_HASH, Slice, slices
from cio_pipeline.posthog.source import EVENT_SCHEMA, NotExtracted, in_order
from cio_pipeline.sandbox import posthog
from cio_pipeline.sandbox.project import Project

START = datetime(2026, 3, 2, tzinfo=timezone.utc)
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
    frames = list(found.events(START, END, lambda _: None).frames)
    return in_order(pd.concat(frames)) if frames else EVENT_SCHEMA.empty_table().to_pandas()


def rows(**values: Any) -> pd.DataFrame:
    """One row of an answer, with these values."""
    row = {"uuid": "x", "event": "e", "distinct_id": "u", "timestamp": "2026-03-02T10:00:00Z", "properties": "{}", **values}
    return event_frame({name: [value] for name, value in row.items()}, START, END)


def test_a_day_is_read_to_the_microsecond_whatever_the_projects_time_zone(server: posthog.PostHog) -> None:
    inside = ["2026-03-02T00:00:00.000000Z", "2026-03-02T23:59:59.999999Z"]
    outside = ["2026-03-01T23:59:59.999999Z", "2026-03-03T00:00:00.000000Z"]
    server.add(stored(number, at=at) for number, at in enumerate(inside + outside))
    events = read(source(server))
    assert [str(time) for time in events["timestamp"]] == ["2026-03-02 00:00:00+00:00", "2026-03-02 23:59:59.999999+00:00"]
    assert events["properties"].tolist() == ["{}", "{}"]
    assert events["person_properties"].isna().all()


def test_full_slices_are_split_by_name_then_distinct_id_then_uuid(
    server: posthog.PostHog, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "MOST_ROWS", 40)
    server.add(stored(number, name=f"event {number % 3}") for number in range(1500))
    assert read(source(server))["uuid"].nunique() == 1500
    assert project.most_at_once <= 3


def test_duplicates_are_one_event(server: posthog.PostHog) -> None:
    server.add([stored(1), stored(1), stored(2)])
    assert len(read(source(server))) == 2


def test_only_what_the_settings_need_is_asked_for(server: posthog.PostHog) -> None:
    server.add(
        [
            stored(1, "order"),
            stored(2, "$identify"),
            stored(3, "visit", set={"email": "a@example.com"}),
            stored(4, "visit", set={"plan": "pro"}),
        ]
    )
    assert read(source(server, allowlist=("order",)))["event"].tolist() == ["order", "$identify", "visit"]


def test_the_persons_properties_are_asked_for_where_attributes_come_from_there(server: posthog.PostHog) -> None:
    server.add([stored(1), stored(2, "visit")])
    assert read(source(server, attributes_from="person"))["person_properties"].tolist() == ['{"n":1}', '{"n":2}']
    assert len(read(source(server, attributes_from="person", allowlist=("order",)))) == 1


def test_r18_history_is_all_that_teaches_before_a_day(server: posthog.PostHog) -> None:
    names = ("$identify", "$set", "order")
    at = [f"202{5 - number % 3}-{number % 12 + 1:02d}-01T00:00:00.000000Z" for number in range(90)]
    server.add([stored(number, names[number % 3], when) for number, when in enumerate(at)])
    server.add([stored(100, "$identify", "2026-03-01T23:59:59.999999Z"), stored(101, "$identify")])
    found = source(server).history(START, lambda _: None)
    assert found.expected == 61
    assert pd.concat(found.frames)["event"].value_counts().to_dict() == {"$identify": 31, "$set": 30}


def test_a_project_without_history_has_none(server: posthog.PostHog) -> None:
    server.add([stored(1, "order", "2026-03-01T00:00:00.000000Z")])
    found = source(server).history(START, lambda _: None)
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
def test_wrong_settings_are_named_without_the_key(server: posthog.PostHog, wrong: dict[str, str], names: str) -> None:
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


@pytest.mark.parametrize("value", ["2026-03-02T00:00:00-08:00x", 5.5, None, "2026-03-03T00:00:00Z", "2026-03-01T16:00:00"])
def test_a_time_that_is_none_or_of_another_day_is_refused(value: object) -> None:
    with pytest.raises(NotExtracted, match="time"):
        rows(timestamp=value)


def test_a_column_that_is_missing_is_named() -> None:
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


def test_a_query_names_500_events_at_most() -> None:
    found = list(slices({f"event {number}": 1 for number in range(1201)}))
    assert [len(part.events) for part in found] == [500, 500, 201]


@pytest.mark.parametrize("seed", range(20))
def test_a_large_day_takes_no_more_queries_than_names_and_30000s_of_rows(seed: int) -> None:
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
def test_what_a_slice_is_cut_into_covers_it_once(part: Slice) -> None:
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


def test_one_hash_cannot_be_cut() -> None:
    assert Slice(("a",), ids=(5, 5), uuids=(6, 6)).smaller() == []
    assert Slice(("a",), uuids=(6, 6)).by_uuid(100_000) == []


def test_an_empty_window_is_asked_no_slice() -> None:
    assert list(slices({})) == []
