"""The events list of old PostHogs, whatever their page size and order: every event of the window exactly once, or an error."""

from __future__ import annotations

import json
import random
import tempfile
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from cio_pipeline.defs.services import new_event_source
from cio_pipeline.json_text import NOT_EXPRESSIBLE, TOO_DEEP, UnusableJson, is_too_deep, read_object
from cio_pipeline.posthog import events_api
from cio_pipeline.posthog.events_api import EventsApiSource
from cio_pipeline.posthog.query import QuerySource
from cio_pipeline.posthog.source import EVENT_SCHEMA, NEEDED, EventSource, EventStream, NotExtracted, without_duplicates
from cio_pipeline.rules.options import AttributesFrom
from cio_pipeline.sandbox.posthog import legacy
from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.sandbox.posthog.answers import Answer
from cio_pipeline.sandbox.posthog.legacy import EventsList
from cio_pipeline.sandbox.posthog.project import Project
from cio_pipeline.settings.settings import Settings

START = datetime(2026, 3, 2, tzinfo=UTC)
END = START + timedelta(days=1)


def stored(number: int, at: datetime, event: str = "order", **properties: Any) -> dict[str, Any]:
    return {
        "uuid": str(uuid.UUID(int=number + (number % 7 << 120))),
        "event": event,
        "distinct_id": f"u{number % 11}",
        "timestamp": at.isoformat(),
        "properties": properties,
    }


def a_day(rows: int, ties: int, seed: int = 1) -> list[dict[str, Any]]:
    """Events of the whole day, at and just outside both of its ends, and `ties` events of a single moment."""
    rng = random.Random(seed)
    moments = [START + timedelta(microseconds=rng.randrange(86_400_000_000)) for _ in range(rows - ties - 2)]
    moments += [START + timedelta(hours=5)] * ties + [START, END - timedelta(microseconds=1)]
    outside = [START - timedelta(microseconds=1), END]
    return [stored(number, at) for number, at in enumerate(moments + outside)]


@pytest.fixture
def project() -> Project:
    return Project(legacy=EventsList())


@pytest.fixture
def server(project: Project) -> Iterator[posthog.PostHog]:
    with posthog.serve(project=project) as running:
        yield running


def source(
    server: posthog.PostHog, allowlist: tuple[str, ...] = (), attributes_from: AttributesFrom = "auto"
) -> EventsApiSource:
    return EventsApiSource(server.url, "1", "phx_sandbox", allowlist, attributes_from)


def read(found: EventStream) -> pd.DataFrame:
    rows = pa.concat_tables([EVENT_SCHEMA.empty_table().append_column(NEEDED, pa.array([], pa.bool_())), *found.frames])
    assert len(rows) == found.expected
    return without_duplicates(rows.to_pandas())


def test_listed_events_are_first_written_to_the_temporary_folder(
    server: posthog.PostHog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError, match="missing"):
        source(server).events(START, END)


@pytest.mark.parametrize("knows_order", [True, False], ids=["oldest-first", "newest-first"])
@pytest.mark.parametrize(("max_rows", "rows", "ties"), [(100, 720, 60), (1000, 5200, 900), (50_000, 5200, 3000)])
def test_every_event_of_a_day_is_read_once_whatever_the_page_size(
    server: posthog.PostHog, project: Project, max_rows: int, rows: int, ties: int, knows_order: bool
) -> None:
    project.legacy = EventsList(max_rows, knows_order)
    server.add(a_day(rows, ties))
    events = read(source(server).events(START, END))
    assert len(events) == rows
    assert (events["timestamp"].min(), events["timestamp"].max()) == (START, END - timedelta(microseconds=1))


def test_random_days_with_many_simultaneous_events_are_read_once(server: posthog.PostHog, project: Project) -> None:
    project.legacy = EventsList(100)
    rng = random.Random(7)
    moments = [START + timedelta(seconds=rng.randrange(40)) for _ in range(1500)]
    server.add(stored(number, at) for number, at in enumerate(moments))
    assert len(read(source(server).events(START, END))) == 1500


@pytest.mark.parametrize("rows", [0, 1, 99, 100, 101, 200])
def test_days_that_end_with_a_full_page_are_complete(server: posthog.PostHog, project: Project, rows: int) -> None:
    project.legacy = EventsList(100)
    server.add(stored(number, START + timedelta(minutes=number)) for number in range(rows))
    assert len(read(source(server).events(START, END))) == rows


@pytest.mark.parametrize("knows_order", [True, False])
def test_a_moment_that_fills_every_page_is_refused_with_its_time(
    server: posthog.PostHog, project: Project, knows_order: bool
) -> None:
    project.legacy = EventsList(100, knows_order)
    server.add(a_day(300, ties=130))
    with pytest.raises(NotExtracted, match=r"2026-03-02T05:00:00\+00:00.+CIO_EVENT_SOURCE=batch_export"):
        source(server).events(START, END)


@pytest.mark.parametrize("knows_order", [True, False])
def test_a_day_with_a_single_moment_is_requested_in_a_larger_page(
    server: posthog.PostHog, project: Project, knows_order: bool
) -> None:
    project.legacy = EventsList(50_000, knows_order)
    server.add(stored(number, START) for number in range(1200))
    assert len(read(source(server).events(START, END))) == 1200


def test_a_second_moment_that_fills_a_page_is_not_the_end_either(server: posthog.PostHog, project: Project) -> None:
    project.legacy = EventsList(50_000)
    moments = [START + timedelta(seconds=6 * number) for number in range(14_000)]
    moments += [START + timedelta(hours=hour) for hour in (1, 20) for _ in range(1200)]
    server.add(stored(number, at) for number, at in enumerate(moments))
    assert len(read(source(server).events(START, END))) == 16_400


@pytest.mark.parametrize("knows_order", [True, False])
@pytest.mark.parametrize("others", [0, 2000], ids=["alone", "among-others"])
@pytest.mark.parametrize("max_rows", [50, 250, 500])
def test_a_moment_that_fills_pages_of_any_size_is_refused(
    server: posthog.PostHog, project: Project, max_rows: int, others: int, knows_order: bool
) -> None:
    project.legacy = EventsList(max_rows, knows_order)
    server.add(a_day(others + 702, ties=700))
    with pytest.raises(NotExtracted, match=r"2026-03-02T05:00:00\+00:00.+CIO_EVENT_SOURCE=batch_export"):
        source(server).events(START, END)


def test_a_last_moment_with_1000_events_is_complete_if_the_server_returned_larger_pages(
    server: posthog.PostHog, project: Project
) -> None:
    project.legacy = EventsList(50_000)
    moments = [START] * 10 + [START + timedelta(hours=5)] * 1100 + [START + timedelta(hours=6)] * 1000
    server.add(stored(number, at) for number, at in enumerate(moments))
    assert len(read(source(server).events(START, END))) == 2110


def test_a_last_moment_that_fills_a_page_is_refused_even_without_a_next(
    server: posthog.PostHog, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.legacy = EventsList(250)
    moments = [START + timedelta(seconds=number) for number in range(400)] + [START + timedelta(hours=5)] * 400
    server.add(stored(number, at) for number, at in enumerate(moments))
    page = EventsList.page
    monkeypatch.setattr(EventsList, "page", lambda *asked: {**page(*asked), "next": None})
    with pytest.raises(NotExtracted, match="CIO_EVENT_SOURCE=batch_export"):
        source(server).events(START, END)


@pytest.mark.parametrize("edge", [START, END - timedelta(microseconds=1)], ids=["first", "last"])
@pytest.mark.parametrize("knows_order", [True, False])
def test_a_first_or_last_moment_that_fills_pages_of_any_size_is_refused(
    server: posthog.PostHog, project: Project, edge: datetime, knows_order: bool
) -> None:
    project.legacy = EventsList(250, knows_order)
    server.add(stored(number, edge) for number in range(300))
    server.add(stored(1000 + number, START + timedelta(minutes=10 + number)) for number in range(240))
    with pytest.raises(NotExtracted, match="CIO_EVENT_SOURCE=batch_export"):
        source(server).events(START, END)


@pytest.mark.parametrize("rows", [1, 7, 99, 101, 1200])
def test_a_day_with_a_single_moment_is_complete_if_nothing_is_found_around_it(server: posthog.PostHog, rows: int) -> None:
    server.project.legacy = EventsList(50_000)
    server.add(stored(number, START + timedelta(hours=5)) for number in range(rows))
    assert len(read(source(server).events(START, END))) == rows


def test_a_next_that_never_ends_is_not_believed(server: posthog.PostHog, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(stored(number, START + timedelta(hours=5)) for number in range(2))
    page = EventsList.page
    monkeypatch.setattr(EventsList, "page", lambda *asked: {**page(*asked), "next": asked[2]})
    assert len(read(source(server).events(START, END))) == 2


def test_an_empty_day_is_requested_again(server: posthog.PostHog, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(stored(number, START + timedelta(hours=number)) for number in range(9))
    page, asked = EventsList.page, list[Any]()

    def at_first_empty(*given: Any) -> Any:
        asked.append(given)
        return {"next": None, "results": []} if len(asked) == 1 else page(*given)

    monkeypatch.setattr(EventsList, "page", at_first_empty)
    assert len(read(source(server).events(START, END))) == 9


def test_simultaneous_events_may_come_in_a_different_order_each_time(
    server: posthog.PostHog, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.legacy = EventsList(50_000)
    moments = [START + timedelta(seconds=number) for number in range(998)] + [START + timedelta(hours=5)] * 3000
    server.add(stored(number, at) for number, at in enumerate(moments))
    turns = iter(["ASC, uuid", "ASC, uuid DESC"] * 9)
    select = legacy.SELECT
    page = EventsList.page

    def turned(*asked: Any) -> dict[str, Any]:
        monkeypatch.setattr(legacy, "SELECT", select.replace("{order}", next(turns)))
        return page(*asked)

    monkeypatch.setattr(EventsList, "page", turned)
    assert len(read(source(server).events(START, END))) == 3998


def test_a_day_may_end_with_as_many_simultaneous_events_as_smaller_servers_return(server: posthog.PostHog) -> None:
    server.add(stored(number, START + timedelta(seconds=min(number, 1100))) for number in range(1200))
    assert len(read(source(server).events(START, END))) == 1200


def test_a_list_that_skips_the_moment_it_should_begin_with_is_refused(
    server: posthog.PostHog, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(stored(number, START + timedelta(seconds=number)) for number in range(1500))
    monkeypatch.setattr(events_api, "TICK", timedelta(0))
    with pytest.raises(NotExtracted, match=r"jumps at 2026-03-02T00:16:40\+00:00"):
        source(server).events(START, END)


def test_longer_windows_are_read_day_by_day(server: posthog.PostHog, project: Project) -> None:
    server.add(stored(number, START + timedelta(hours=number)) for number in range(60))
    found = source(server).events(START, START + timedelta(hours=60))
    assert len(read(found)) == 60
    assert found.stats["pages"] == 6


@pytest.mark.parametrize("knows_order", [True, False])
def test_r18_history_has_all_events_that_identify_people_before_a_day(
    server: posthog.PostHog, project: Project, knows_order: bool
) -> None:
    project.legacy = EventsList(100, knows_order)
    names = ("$identify", "$set", "order")
    server.add(stored(number, START - timedelta(days=3 * number), names[number % 3]) for number in range(600))
    events = read(source(server).history(START))
    assert sorted(events["event"].value_counts().to_dict().items()) == [("$identify", 199), ("$set", 200)]


def test_an_event_is_as_posthog_lists_it(server: posthog.PostHog) -> None:
    server.add([stored(1, START, total=12.5, note='"quoted"')])
    [event] = read(source(server).events(START, END)).to_dict("records")
    assert json.loads(event["properties"]) == {"total": 12.5, "note": "quoted"}
    assert pd.isna(event["created_at"])
    assert pd.isna(event["person_properties"])


@pytest.mark.parametrize("number", [2**53 + 1, 2**64, 12345678901234567890123, 10**400, -(10**20), 0.1])
def test_numbers_of_any_length_are_read_exactly(
    server: posthog.PostHog, monkeypatch: pytest.MonkeyPatch, number: float
) -> None:
    page = a_page("2026-03-02T10:00:00Z")
    page["results"][0]["properties"] = {"n": number}
    monkeypatch.setattr(server.project, "events", lambda _: Answer(json.dumps(page).encode()))
    [text] = source(server)._page(events_api.ListingCursor(START, END)).events["properties"]
    assert text == f'{{"n": {number}}}'


def why_refused(text: str) -> str:
    try:
        return TOO_DEEP if is_too_deep(text.encode(), read_object(text)) else ""
    except UnusableJson as why:
        return str(why)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("[" * 1000 + "]" * 1000, TOO_DEEP),
        ('{"a":' * 5000 + '"]}"' + "}" * 5000, TOO_DEEP),
        ('["\\"[", ' + "[" * 20_000 + "9" * 5000 + "]" * 20_000 + ', "}"]', TOO_DEEP),
        ("9" * 4301, NOT_EXPRESSIBLE),
        ("[1," + "-" + "9" * 9000 + "]", NOT_EXPRESSIBLE),
    ],
    ids=["arrays", "objects", "both", "integer", "negative"],
)
def test_one_event_that_cannot_be_read_does_not_stop_the_day(
    server: posthog.PostHog, monkeypatch: pytest.MonkeyPatch, value: str, reason: str
) -> None:
    page = a_page(*(f"2026-03-02T10:00:0{second}Z" for second in range(3)))
    for row in page["results"]:
        row["properties"] = {"text": "[" * 300 + "9" * 5000, "n": 1}
    text = json.dumps(page).replace('"n": 1', f'"n": {value}', 1).encode()
    monkeypatch.setattr(server.project, "events", lambda _: Answer(text))
    bad, *good = source(server)._page(events_api.ListingCursor(START, END)).events["properties"]
    assert why_refused(bad) == reason
    assert [json.loads(text) for text in good] == [{"text": "[" * 300 + "9" * 5000, "n": 1}] * 2


def test_events_that_the_settings_need_are_marked(server: posthog.PostHog) -> None:
    server.add(
        [
            stored(1, START, "order"),
            stored(2, START, "$identify"),
            stored(3, START, "visit", **{"$set": {"email": "a@example.com"}}),
            stored(4, START, "signup"),
        ]
    )
    events = read(source(server, allowlist=("order",)).events(START, END))
    assert dict(zip(events["event"], events[NEEDED], strict=True)) == {
        "order": True,
        "$identify": True,
        "visit": True,
        "signup": False,
    }


def test_person_properties_are_not_available(server: posthog.PostHog) -> None:
    with pytest.raises(NotExtracted, match="CIO_ATTRIBUTES_FROM must be auto or set"):
        source(server, attributes_from="person").check()


def a_page(*timestamps: str) -> dict[str, Any]:
    rows = [
        {"id": str(number), "event": "e", "distinct_id": "u", "timestamp": at, "properties": {}}
        for number, at in enumerate(timestamps)
    ]
    return {"results": rows, "next": None}


def numbered(page: dict[str, Any]) -> dict[str, Any]:
    """The page as PostHog 1.30.0 returns it without ClickHouse."""
    return {**page, "results": [{**row, "id": number} for number, row in enumerate(page["results"], 100)]}


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        (a_page("2026-03-02T10:00:00Z", "2026-03-02T12:00:00Z", "2026-03-02T11:00:00Z"), "is not in order of time"),
        (a_page("2026-03-01T10:00:00Z"), "events of other days"),
        (a_page("2026-03-02T10:00:00Z", "soon"), "an event whose time cannot be read"),
        (a_page("soon", "2026-03-02T10:00:00Z"), "an event whose time cannot be read"),
        (numbered(a_page("2026-03-02T10:00:00Z")), "runs without ClickHouse.+ not supported"),
        ({"results": [{"id": "1"}], "next": None}, "answer is not a list of events"),
        ({"results": []}, "answer is not a list of events"),
        ({"results": None, "next": None}, "answer is not a list of events"),
        ([], "answer is not a list of events"),
    ],
)
def test_a_page_that_cannot_be_trusted_is_refused(
    server: posthog.PostHog, monkeypatch: pytest.MonkeyPatch, page: Any, sentence: str
) -> None:
    answer = Answer(json.dumps(page).encode())
    monkeypatch.setattr(server.project, "events", lambda _: answer)
    with pytest.raises(NotExtracted, match=sentence):
        source(server).events(START, END)


def test_an_order_that_changes_is_refused() -> None:
    times = pd.Series(pd.to_datetime(["2026-03-02T10:00:00Z", "2026-03-02T11:00:00Z"]))
    assert events_api._is_ascending(times, None) is True
    with pytest.raises(NotExtracted, match="not in order"):
        events_api._is_ascending(times, False)


def test_different_events_with_the_same_uuid_and_time_are_all_read_wherever_a_page_ends(
    server: posthog.PostHog, project: Project
) -> None:
    project.legacy = EventsList(100)
    moments = [START + timedelta(seconds=number // 30) for number in range(900)]
    one_uuid = {"uuid": str(uuid.UUID(int=1))}
    server.add({**stored(number, at), **one_uuid, "distinct_id": f"u{number}"} for number, at in enumerate(moments))
    server.add(
        {**stored(number, at, "visit"), **one_uuid, "distinct_id": f"u{number}"}
        for number, at in enumerate(moments[:450])
        if number % 11 == 0
    )
    assert len(read(source(server).events(START, END))) == 900 + 41


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between tries, which take no time here."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", lambda seconds: waited.append(seconds) if seconds else None)
    return waited


def chosen(
    server: posthog.PostHog, attributes_from: AttributesFrom = "auto", project_id: str = "1", key: str = "phx_sandbox"
) -> EventSource:
    """The source for CIO_EVENT_SOURCE=query."""
    names = {"POSTHOG_HOST": server.url, "POSTHOG_PROJECT_ID": project_id, "POSTHOG_PERSONAL_API_KEY": key}
    return new_event_source(Settings.model_validate({**names, "CIO_ATTRIBUTES_FROM": attributes_from}))


def test_the_available_endpoint_is_chosen_and_a_switch_is_logged(
    server: posthog.PostHog, project: Project, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    old = chosen(server)
    assert isinstance(old, EventsApiSource)
    assert caplog.messages == [
        "This PostHog has no query API: its list of events is read, which no count can be checked against."
    ]
    project.legacy = None
    assert isinstance(chosen(server), QuerySource)
    assert len(caplog.messages) == 1


PASSING = {
    "an ingress": Answer(b"<html>404 Not Found</html>", 404),
    "a gateway": Answer(b'{"message":"no Route matched with those values"}', 404),
    "a method": Answer(b"<html>405 Not Allowed</html>", 405),
    "a deployment": Answer(b'{"type":"invalid_request","code":"not_found","detail":"Endpoint not found.","attr":null}', 404),
    "a page": Answer(b"<html>Maintenance</html>", 200),
}


@pytest.mark.parametrize("answer", PASSING.values(), ids=PASSING)
@pytest.mark.parametrize("attributes_from", ["auto", "person"])
def test_a_single_answer_that_is_not_posthogs_switches_nothing(
    server: posthog.PostHog,
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    waits: list[float],
    answer: Answer,
    attributes_from: AttributesFrom,
) -> None:
    project.legacy = None
    query, answers = project.query, iter([answer])
    monkeypatch.setattr(project, "query", lambda body: next(answers, None) or query(body))
    found = chosen(server, attributes_from)
    assert isinstance(found, QuerySource)
    found.check()
    assert len(waits) == 1


@pytest.mark.parametrize("answer", [PASSING["an ingress"], PASSING["a gateway"], PASSING["a method"]])
@pytest.mark.parametrize("attributes_from", ["auto", "person"])
def test_a_proxy_that_keeps_answering_is_reported_and_no_setting_is_blamed(
    server: posthog.PostHog,
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    waits: list[float],
    answer: Answer,
    attributes_from: AttributesFrom,
) -> None:
    project.legacy = None
    monkeypatch.setattr(project, "query", lambda _: answer)
    with pytest.raises(NotExtracted, match=r"POSTHOG_HOST answers 40[45], but not as PostHog does.+ proxy") as refused:
        chosen(server, attributes_from)
    assert "CIO_ATTRIBUTES_FROM" not in str(refused.value)


@pytest.mark.parametrize("legacy", [None, EventsList()], ids=["new", "old"])
@pytest.mark.parametrize(
    ("key", "project_id", "sentence"),
    [("phx_sandbox", "2", "POSTHOG_PROJECT_ID is not found"), ("phx_wrong", "1", "POSTHOG_PERSONAL_API_KEY is not accepted")],
)
def test_a_wrong_project_or_key_is_reported_whatever_the_endpoint(
    server: posthog.PostHog,
    project: Project,
    waits: list[float],
    legacy: EventsList | None,
    key: str,
    project_id: str,
    sentence: str,
) -> None:
    project.legacy = legacy
    with pytest.raises(NotExtracted, match=sentence):
        chosen(server, "auto", project_id, key).check()
