"""The query source against a local PostHog over HTTP: every event of the window exactly once, or an error."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pandas as pd
import pytest

from cio_pipeline.posthog import query
from cio_pipeline.posthog.query import QuerySource
from cio_pipeline.posthog.slices import LARGEST_HASH, Slice, slices
from cio_pipeline.posthog.source import EVENT_SCHEMA, NotExtracted, in_order
from cio_pipeline.sandbox import posthog

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
def project() -> posthog.Project:
    return posthog.Project(zone="America/Los_Angeles")


@pytest.fixture
def server(project: posthog.Project) -> Iterator[posthog.PostHog]:
    with posthog.serve(project=project) as running:
        yield running


def source(server: posthog.PostHog, key: str = "phx_sandbox", project: str = "1", **options: Any) -> QuerySource:
    return QuerySource(server.url, project, key, **{"allowlist": (), "with_person": False, **options})


def read(found: QuerySource) -> pd.DataFrame:
    frames = list(found.events(START, END, lambda _: None).frames)
    return in_order(pd.concat(frames)) if frames else pd.DataFrame(columns=EVENT_SCHEMA.names)


def test_a_day_is_read_to_the_microsecond_whatever_the_projects_time_zone(server: posthog.PostHog) -> None:
    inside = ["2026-03-02T00:00:00.000000Z", "2026-03-02T23:59:59.999999Z"]
    outside = ["2026-03-01T23:59:59.999999Z", "2026-03-03T00:00:00.000000Z"]
    server.add(stored(number, at=at) for number, at in enumerate(inside + outside))
    events = read(source(server))
    assert [str(time) for time in events["timestamp"]] == ["2026-03-02 00:00:00+00:00", "2026-03-02 23:59:59.999999+00:00"]
    assert events["properties"].tolist() == ["{}", "{}"]
    assert events["person_properties"].isna().all()


def test_full_slices_are_split_by_name_then_distinct_id_then_uuid(
    server: posthog.PostHog, project: posthog.Project, monkeypatch: pytest.MonkeyPatch
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
    assert read(source(server, with_person=True))["person_properties"].tolist() == ['{"n":1}', '{"n":2}']
    assert len(read(source(server, with_person=True, allowlist=("order",)))) == 1


def test_a_rerun_reads_no_cached_answer(server: posthog.PostHog) -> None:
    server.add([stored(1)])
    assert len(read(source(server))) == 1
    server.add([stored(2)])
    assert len(read(source(server))) == 2


def test_a_day_that_does_not_add_up_fails_with_both_numbers(server: posthog.PostHog, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(stored(number) for number in range(10))
    found = source(server)
    monkeypatch.setattr(found, "_slice", lambda *_: pd.DataFrame(index=range(9)))
    with pytest.raises(NotExtracted, match="PostHog gave 9 events of 2026-03-02, but counts 10"):
        list(found.events(START, END, lambda _: None).frames)


def test_events_of_another_day_are_not_taken(server: posthog.PostHog) -> None:
    answer = {
        "columns": ["uuid", "event", "distinct_id", "timestamp"],
        "results": [["x", "e", "u", "2026-03-02T00:00:00-08:00"]],
    }
    with pytest.raises(NotExtracted, match="time zone"):
        query._frame(answer, END, END + timedelta(hours=8))


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


def test_half_a_surrogate_pair_in_an_id_is_written_as_its_escape() -> None:
    assert query._json(b'{"a":"\\ud800"}') == {"a": "\ud800"}
    assert query._text("a\ud800") == "a\\ud800"


def test_slices_hold_40000_rows_and_cover_every_hash() -> None:
    found = list(slices({"small": 10, "other": 20, "large": 100_000, "full": 40_000}))
    assert found[0] == Slice(("small", "other"))
    assert found[-1] == Slice(("full",))
    large = found[1:-1]
    assert [part.events for part in large] == [("large",)] * 3
    assert large[0].ids[0] == 0
    assert large[-1].ids[1] == LARGEST_HASH
    assert all(before.ids[1] + 1 == after.ids[0] for before, after in zip(large, large[1:], strict=False))


def test_an_empty_window_is_asked_no_slice() -> None:
    assert list(slices({})) == []
