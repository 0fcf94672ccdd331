"""Whatever PostHog answers instead of a day's rows is waited out, queried in smaller parts, or an error; never a short day."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
import pandas as pd
import pytest

from cio_pipeline.http.retry import Unavailable
from cio_pipeline.posthog import client as api
from cio_pipeline.posthog import query, reading
from cio_pipeline.posthog.query import QuerySource
from cio_pipeline.posthog.reading import WindowReader
from cio_pipeline.posthog.source import NotExtracted, without_duplicates
from cio_pipeline.sandbox.posthog import hogql
from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.sandbox.posthog.answers import Answer
from cio_pipeline.sandbox.posthog.project import DAILY_BYTES, Project

START = datetime(2026, 3, 2, tzinfo=UTC)
END = START + timedelta(days=1)

Fault = Callable[[str, dict[str, Any], int], "Answer | None"]
"""Returns the answer to give instead, from the query, its values and the number of earlier queries, or None."""


class Cut(bytes):
    """Answers with half of the announced bytes."""

    def __len__(self) -> int:
        return 2 * super().__len__()


class Faulty(Project):
    """A project that answers some queries with a fault."""

    fault: Fault
    queries: list[tuple[str, dict[str, Any]]]

    def query(self, body: Any) -> Answer:
        hogql, values = body["query"]["query"], body["query"]["values"]
        self.queries.append((hogql, values))
        return self.fault(hogql, values, len(self.queries) - 1) or super().query(body)

    def asked(self, text: str) -> int:
        return sum(text in hogql for hogql, _ in self.queries)


def refusal(status: int, code: str = "error", detail: str = "a fault", **headers: str) -> Answer:
    body = {"type": "server_error", "code": code, "detail": detail, "attr": None}
    return Answer(orjson.dumps(body), status, {name.replace("_", "-"): value for name, value in headers.items()})


def stored(number: int, event: str = "order", distinct_id: str = "", at: datetime = START) -> dict[str, Any]:
    return {
        "uuid": str(UUID(int=number)),
        "event": event,
        "distinct_id": distinct_id or f"u{number}",
        "timestamp": at.isoformat(),
        "properties": {},
    }


@pytest.fixture
def project() -> Faulty:
    project = Faulty()
    project.fault, project.queries = lambda *_: None, []
    return project


@pytest.fixture
def source(project: Faulty) -> Iterator[QuerySource]:
    with posthog.serve(project=project) as server:
        yield QuerySource(server.url, "1", "phx_sandbox", (), attributes_from="set")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between tries, which take no time here."""
    waited: list[float] = []
    monkeypatch.setattr(WindowReader, "_sleep", lambda _, seconds: waited.append(seconds))
    return waited


def read(source: QuerySource) -> pd.DataFrame:
    return without_duplicates(pd.concat(source.events(START, END).frames))


@pytest.mark.parametrize("column", ["event", "month"])
def test_a_single_count_of_zero_is_not_an_empty_day_or_history(source: QuerySource, project: Faulty, column: str) -> None:
    project.add(stored(number, "$identify") for number in range(3))
    nothing = Answer(orjson.dumps({"columns": [column, "events"], "results": []}))
    project.fault = lambda *asked: nothing if asked[2] == 0 else None
    window = source.events(START, END) if column == "event" else source.history(END)
    assert sum(map(len, window.frames)) == 3


# Too much at once

TOO_BIG = [
    (512, "error", "a fault"),
    (513, "clickhouse_query_memory_limit_exceeded", "Query memory limit exceeded."),
    (513, "error", "a fault"),
    (413, "error", "Request entity too large."),
    (504, "error", "Query has hit the max execution time before completing. See our docs for how to improve it."),
    (400, "memory_limit_exceeded", "a fault"),
    (400, "too_many_bytes", "a fault"),
    (400, "validation_error", "Query exceeds memory limits. Try reducing its scope by changing the time range."),
    (400, "hogql_query_error", "Code: 241. DB::Exception: Memory limit (for query) exceeded (MEMORY_LIMIT_EXCEEDED)"),
    (400, "error", "Timeout exceeded: elapsed 10.1 seconds, maximum: 10. (TIMEOUT_EXCEEDED)"),
    (500, "error", "Estimated query execution time (41 seconds) is too long. (TOO_SLOW)"),
    (500, "error", "Query size exceeded."),
]


@pytest.mark.parametrize(("status", "code", "detail"), TOO_BIG)
def test_a_slice_that_is_too_big_is_queried_in_parts_and_not_retried(
    source: QuerySource, project: Faulty, status: int, code: str, detail: str, waits: list[float]
) -> None:
    project.add(stored(number, f"event {number % 2}") for number in range(40))
    asked: list[tuple[str, ...]] = []

    def fault(hogql: str, values: dict[str, Any], _: int) -> Answer | None:
        asked.append(tuple(sorted(map(str, values.items()))))
        is_large = "events" in values and (len(values["events"]) > 1 or values["uuid_high"] - values["uuid_low"] > 2**63)
        return refusal(status, code, detail) if is_large else None

    project.fault = fault
    assert read(source)["uuid"].nunique() == 40
    assert len(asked) == len(set(asked))
    assert waits == []


@pytest.mark.parametrize("status", [500, 502, 503, 504, 520, 524])
def test_an_error_that_may_mean_busy_or_too_big_is_retried_and_then_queried_in_parts(
    source: QuerySource, project: Faulty, status: int, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    project.add(stored(number, f"event {number % 2}") for number in range(40))

    def fault(hogql: str, values: dict[str, Any], _: int) -> Answer | None:
        is_large = "events" in values and (len(values["events"]) > 1 or values["uuid_high"] - values["uuid_low"] > 2**63)
        return refusal(status) if is_large else None

    project.fault = fault
    assert read(source)["uuid"].nunique() == 40
    assert caplog.messages.count(f"PostHog answered {status}: busy, or the query was too large; trying smaller ones.") == 1
    assert 0 < len(waits) < 20
    assert sum(waits) < 200


@pytest.mark.parametrize(("status", "answers"), [(500, 40), (503, 1), (503, 5), (503, 40), (504, 40), (524, 40)])
def test_a_posthog_that_is_busy_for_some_minutes_does_not_fail_a_day(
    source: QuerySource, project: Faulty, status: int, answers: int, waits: list[float]
) -> None:
    project.add(stored(number, f"event {number % 3}") for number in range(40))
    project.fault = lambda *asked: refusal(status) if 1 <= asked[2] <= answers else None
    assert read(source)["uuid"].nunique() == 40


def test_posthogs_retry_after_is_respected(source: QuerySource, project: Faulty, waits: list[float]) -> None:
    project.fault = lambda *asked: refusal(503, Retry_After="77") if asked[2] < 1 else None
    source.events(START, END)
    assert waits == [77]


def test_a_uuid_with_more_events_than_fit_in_an_answer_is_read_completely(
    source: QuerySource, project: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_ROWS", 50)
    project.add({**stored(7), "distinct_id": f"u{number}"} for number in range(400))
    assert len(read(source)) == 400


def test_a_count_that_is_too_big_is_added_up_over_parts_of_the_day(source: QuerySource, project: Faulty) -> None:
    project.add(stored(number, f"event {number % 3}", at=START + timedelta(minutes=number)) for number in range(1440))
    project.add([stored(1440, at=END - timedelta(microseconds=1))])

    def fault(hogql: str, values: dict[str, Any], _: int) -> Answer | None:
        span = datetime.fromisoformat(values["end"]) - datetime.fromisoformat(values["start"])
        return refusal(513) if "GROUP BY" in hogql and span > timedelta(hours=4) else None

    project.fault = fault
    found = source.events(START, END)
    assert found.expected == 1441
    assert len(pd.concat(found.frames)) == 1441
    assert project.asked("GROUP BY") == 15


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ("GROUP BY", "cannot count the events of the minute 2026-03-02 00:00"),
        ("cityHash64", "cannot return the events 'order' of 2026-03-02"),
    ],
)
def test_a_posthog_that_always_times_out_is_soon_an_error(
    source: QuerySource, project: Faulty, part: str, sentence: str
) -> None:
    project.add(stored(number) for number in range(10))
    project.fault = lambda hogql, *_: refusal(513) if part in hogql else None
    with pytest.raises(NotExtracted, match=sentence):
        read(source)
    assert len(project.queries) < 60


@pytest.mark.parametrize("part", ["GROUP BY", "cityHash64"])
def test_a_posthog_that_stays_busy_is_an_error_after_a_quarter_of_an_hour_of_waiting(
    source: QuerySource, project: Faulty, part: str, waits: list[float]
) -> None:
    project.add(stored(number) for number in range(10))
    project.fault = lambda hogql, *_: refusal(504) if part in hogql else None
    with pytest.raises(NotExtracted, match="PostHog still answers 504 after 15 minutes of waiting"):
        read(source)
    assert 890 <= sum(waits) <= 930
    assert len(project.queries) < 200


def test_an_address_in_an_event_name_or_in_posthogs_message_is_masked(source: QuerySource, project: Faulty) -> None:
    project.add([stored(1, "Invited bob@example.com")])
    project.fault = lambda hogql, *_: refusal(513) if "cityHash64" in hogql else None
    with pytest.raises(NotExtracted, match=r"the events 'Invited b\*\*\*@e\*\*\*.com' of 2026-03-02"):
        read(source)
    detail = {"detail": "No such event: Invited bob@example.com"}
    project.fault = lambda *_: Answer(orjson.dumps(detail), 400)
    with pytest.raises(NotExtracted, match=r"No such event: Invited b\*\*\*@e\*\*\*.com"):
        read(source)


def test_a_history_whose_beginning_cannot_be_counted_is_an_error(source: QuerySource, project: Faulty) -> None:
    project.fault = lambda *_: refusal(512)
    with pytest.raises(NotExtracted, match="cannot count the events of the minute 1970-01-01 00:00"):
        source.history(START)
    assert len(project.queries) < 30


def test_a_history_too_long_for_one_query_is_added_up_over_its_parts(source: QuerySource, project: Faulty) -> None:
    project.add(stored(number, "$identify", at=START - timedelta(days=40 * number + 1)) for number in range(60))

    def fault(hogql: str, values: dict[str, Any], _: int) -> Answer | None:
        span = datetime.fromisoformat(values["end"]) - datetime.fromisoformat(values["start"])
        return refusal(512) if "toYYYYMM" in hogql and span > timedelta(days=400) else None

    project.fault = fault
    found = source.history(START)
    assert found.expected == len(pd.concat(found.frames)) == 60


def test_a_full_slice_of_one_person_is_counted_and_split_at_once(
    source: QuerySource, project: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_ROWS", 50)
    monkeypatch.setattr(reading, "TARGET_ROWS", 40)
    project.add(stored(number, distinct_id="server" if number % 10 else "") for number in range(1000))
    assert read(source)["uuid"].nunique() == 1000
    assert len(project.queries) < 3 * 1000 / 40


def test_more_rows_with_one_uuid_than_a_query_returns_are_an_error(
    source: QuerySource, project: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_ROWS", 50)
    project.add([stored(1)] * 60)
    with pytest.raises(NotExtracted, match="cannot return the events 'order' of 2026-03-02, not even in small parts"):
        read(source)
    assert len(project.queries) < 80


def test_an_answer_with_has_more_is_a_full_slice(source: QuerySource, project: Faulty) -> None:
    project.add(stored(number, f"event {number % 2}") for number in range(8))

    def fault(hogql: str, values: dict[str, Any], _: int) -> Answer | None:
        if len(values.get("events", ())) < 2:
            return None
        return Answer(orjson.dumps({"columns": list(query.COLUMNS), "results": [], "hasMore": True}))

    project.fault = fault
    assert len(read(source)) == 8


# Not now


def test_a_used_up_hourly_budget_is_waited_out_and_logged(
    source: QuerySource, project: Faulty, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    project.add([stored(1)])
    project.fault = lambda *asked: refusal(429, "api_queries_budget_exceeded", Retry_After="600") if asked[2] < 30 else None
    assert len(read(source)) == 1
    assert waits == [600] * 30, "five hours, far more than the tries for troubles"
    assert caplog.messages[0] == "PostHog: it answered 429; trying again in 600 s."


def test_no_wait_is_longer_than_an_hour(source: QuerySource, project: Faulty, waits: list[float]) -> None:
    project.fault = lambda *asked: refusal(429, Retry_After="90000") if asked[2] < 1 else None
    source.events(START, END)
    assert waits == [3600]


def test_a_429_without_retry_after_is_retried_after_longer_and_longer_waits(
    source: QuerySource, project: Faulty, waits: list[float]
) -> None:
    project.fault = lambda *asked: refusal(429, "throttled") if asked[2] < 20 else None
    source.events(START, END)
    assert waits[0] <= 0.5
    assert all(15 <= wait <= 30 for wait in waits[8:])


def test_patience_ends(source: QuerySource, project: Faulty, waits: list[float]) -> None:
    project.fault = lambda *_: refusal(429, Retry_After="3600")
    with pytest.raises(Unavailable, match=r"PostHog \(127\.0\.0\.1\) could not be reached in 7 tries: it answered 429"):
        source.events(START, END)
    assert sum(waits) == api.PATIENCE_SECONDS


def test_no_query_waits_for_a_day_that_has_failed(
    source: QuerySource, project: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "TARGET_ROWS", 1)
    project.add([stored(1, "waits"), stored(2, "fails")])

    def fault(hogql: str, values: dict[str, Any], _: int) -> Answer | None:
        if values.get("events") == ["waits"]:
            return refusal(429, Retry_After="3600")
        if values.get("events") == ["fails"]:
            time.sleep(0.3)
            return refusal(403)
        return None

    project.fault = fault
    started = time.monotonic()
    with pytest.raises(NotExtracted, match="lacks the scope Query Read"):
        read(source)
    assert time.monotonic() - started < 5


# Troubles that pass, and some that do not


@pytest.mark.parametrize("status", [408, 500, 502, 503, 520])
def test_transient_errors_are_retried(source: QuerySource, project: Faulty, status: int, waits: list[float]) -> None:
    project.add([stored(1)])
    project.fault = lambda *asked: refusal(status) if asked[2] in (0, 1, 3, 4) else None
    assert len(read(source)) == 1
    assert len(waits) == 4


GARBLED = {
    "broken": Cut(b'{"results": [["'),
    "truncated": b'{"results": [["',
    "empty": b"",
    "a web page": b"<html>Back in a minute</html>",
    "text": b"upstream is being restarted",
    "too deep": b"[" * 100_000,
}


@pytest.mark.parametrize("content", GARBLED.values(), ids=GARBLED)
def test_an_answer_that_is_cut_off_is_requested_again(
    source: QuerySource, project: Faulty, content: bytes, waits: list[float]
) -> None:
    project.add([stored(1)])
    project.fault = lambda *asked: Answer(content, headers={"Connection": "close"}) if asked[2] in (0, 2, 3) else None
    assert len(read(source)) == 1
    assert len(waits) == 3


def refused_by_a_proxy(status: int, body: bytes = b"<html>nginx</html>") -> Answer:
    return Answer(body, status, {"Connection": "close"})


@pytest.mark.parametrize(
    ("status", "body"),
    [
        *[(status, b"<html>nginx</html>") for status in (400, 401, 403, 404, 405, 418)],
        *[
            (status, body)
            for status in (400, 401, 403, 404)
            for body in (b"", b'{"message":"no Route matched with those values"}')
        ],
    ],
)
def test_an_answer_from_a_proxy_is_requested_again(
    source: QuerySource, project: Faulty, status: int, body: bytes, waits: list[float]
) -> None:
    project.add([stored(1)])
    project.fault = lambda *asked: refused_by_a_proxy(status, body) if asked[2] in (0, 2) else None
    assert len(read(source)) == 1
    assert len(waits) == 2


def test_lasting_errors_end_in_a_sentence(source: QuerySource, project: Faulty, waits: list[float]) -> None:
    project.fault = lambda *_: refused_by_a_proxy(404)
    with pytest.raises(NotExtracted, match=r"POSTHOG_HOST answers 404, but not as PostHog does"):
        source.events(START, END)
    longest = [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert len(waits) == len(longest)
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, longest, strict=True)), (
        "twice as long each time, with jitter"
    )


@pytest.mark.parametrize(("body", "sentence"), [(b"<html>", "answers with a web page"), (b"?", "not JSON, or is cut short")])
def test_a_host_that_is_not_posthog_is_reported(
    source: QuerySource, project: Faulty, monkeypatch: pytest.MonkeyPatch, body: bytes, sentence: str
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    project.fault = lambda *_: Answer(body)
    with pytest.raises(NotExtracted, match=sentence):
        source.check()
    assert len(project.queries) == 5


def test_errors_contain_neither_the_key_nor_an_address(source: QuerySource, project: Faulty) -> None:
    said = "Bearer phx_sandbox\x1b[31m\nSELECT 'jane.doe@example.com' FROM events " + "x@y" * 9000
    project.fault = lambda *_: refusal(400, detail=said)
    with pytest.raises(NotExtracted, match="PostHog refused the request") as raised:
        source.check()
    error: BaseException | None = raised.value
    while error is not None:
        shown = f"{error!r} {error.args} {vars(error)}"
        assert not [secret for secret in ("phx_sandbox", "jane.doe", "\x1b", "\n") if secret in str(error) or secret in shown]
        assert len(str(error)) < 700
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("value", ["many", "", "-1", "1e3", "٣"])
def test_an_invalid_budget_header_is_ignored(source: QuerySource, project: Faulty, value: str) -> None:
    project.add([stored(1)])
    project_query = Project.query

    def fault(hogql: str, values: dict[str, Any], _: int) -> Answer:
        body = {"query": {"kind": "HogQLQuery", "query": hogql, "values": values}, "refresh": "force_blocking"}
        found = project_query(project, body)
        found.headers["X-PostHog-Query-Bytes-Read"] = value.encode().decode("latin-1")
        return found

    project.fault = fault
    assert len(read(source)) == 1


def test_a_check_is_never_too_big(source: QuerySource, project: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    project.fault = lambda *asked: refusal(504) if asked[2] < 3 else None
    source.check()
    assert len(project.queries) == 4


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (refusal(400), r"PostHog refused the request \(400\): a fault"),
        (Answer(b"[]"), "no columns and results"),
        (Answer(b'{"columns": ["event"]}'), "no columns and results"),
        (Answer(b'{"columns": ["event", "events"], "results": [["order"]]}'), "no columns and results"),
        (Answer(b'{"columns": ["event"], "results": [["order"]]}'), "PostHog's answer lacks events"),
        (Answer(b'{"columns": ["event", "events"], "results": [["order", "many"]]}'), "count is not a number"),
        (Answer(b'{"columns": ["event", "events"], "results": {"a": 1}}'), "no columns and results"),
    ],
)
def test_an_answer_with_another_structure_is_an_error_at_once(
    source: QuerySource, project: Faulty, answer: Answer, sentence: str, waits: list[float]
) -> None:
    project.fault = lambda *_: answer
    with pytest.raises(NotExtracted, match=sentence):
        source.events(START, END)
    assert waits == []


def test_a_count_written_as_text_is_a_number(source: QuerySource, project: Faulty) -> None:
    project.add([stored(1)])
    body = {"columns": ["event", "events"], "results": [["order", "1"]]}
    project.fault = lambda hogql, *_: Answer(orjson.dumps(body)) if "GROUP BY" in hogql else None
    assert len(read(source)) == 1


# Days that change, or do not add up


def test_events_that_arrive_while_a_day_is_read_are_not_an_error(source: QuerySource, project: Faulty) -> None:
    project.add(stored(number) for number in range(10))

    def fault(hogql: str, *_: Any) -> None:
        project.add([stored(100 + len(project.queries))])

    project.fault = fault
    assert len(read(source)) == 12
    assert Counter("GROUP BY" in hogql for hogql, _ in project.queries) == {True: 2, False: 1}


def lose(project: Faulty, times: int) -> Fault:
    """A fault: the answers to that many slices lack a row."""
    lost = iter(range(times))

    def fault(hogql: str, *_: Any) -> Answer | None:
        if "cityHash64" not in hogql or next(lost, None) is None:
            return None
        rows = [
            [str(UUID(int=number)), "order", f"u{number}", START.isoformat(), START.isoformat(), "{}"] for number in range(9)
        ]
        return Answer(orjson.dumps({"columns": list(query.COLUMNS), "results": rows}))

    return fault


def test_a_day_that_does_not_add_up_is_read_again(
    source: QuerySource, project: Faulty, caplog: pytest.LogCaptureFixture
) -> None:
    project.add(stored(number) for number in range(10))
    project.fault = lose(project, times=1)
    assert len(read(source)) == 10
    assert caplog.messages == ["PostHog gave 9 events of 2026-03-02, but counts 10: reading them again."]


def test_a_day_that_still_does_not_add_up_fails_with_both_numbers(source: QuerySource, project: Faulty) -> None:
    project.add(stored(number) for number in range(10))
    project.fault = lose(project, times=2)
    with pytest.raises(NotExtracted, match="PostHog gave 9 events of 2026-03-02, but counts 10: run the partition again"):
        read(source)


# Older PostHogs, which give at most 10,000 rows and do not say so (here 1,000)


@pytest.fixture
def clamped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hogql, "MAX_ROWS", 1000)
    monkeypatch.setattr(reading, "TARGET_ROWS", 4000)


@pytest.mark.usefixtures("clamped")
@pytest.mark.parametrize("people", [1, 9000])
def test_a_posthog_with_a_lower_row_limit_is_read_in_smaller_slices(
    source: QuerySource, project: Faulty, people: int, caplog: pytest.LogCaptureFixture
) -> None:
    project.add(stored(number, ("order", "visit")[number % 9 == 0], f"u{number % people}") for number in range(9000))
    assert read(source)["uuid"].nunique() == 9000
    assert len(caplog.messages) == 1
    assert "but counts 9,000: reading them again" in caplog.messages[0]
    project.queries.clear()
    assert len(read(source)) == 9000
    assert len(caplog.messages) == 1, "the next day is not read twice"
    assert len(project.queries) <= 40


@pytest.mark.usefixtures("clamped")
def test_more_event_names_than_the_row_limit_are_all_counted(source: QuerySource, project: Faulty) -> None:
    project.add(stored(number, f"event {number}", at=START + timedelta(minutes=number // 2)) for number in range(2600))
    assert len(read(source)) == 2600


def test_a_complete_answer_with_a_round_number_of_rows_takes_no_more_queries(source: QuerySource, project: Faulty) -> None:
    project.add(stored(number) for number in range(3000))
    assert len(read(source)) == 3000
    assert len(project.queries) == 2


# What a person sees


def test_the_stats_are_complete_at_the_end(source: QuerySource, project: Faulty) -> None:
    project.add(stored(number) for number in range(10))
    found = source.events(START, END)
    counted = found.stats["bytes PostHog read"]
    assert len(list(found.frames)) == 1
    assert found.stats["queries"] == 2
    assert found.stats["bytes PostHog read"] > counted > 0
    assert found.stats["bytes left to read"] == DAILY_BYTES - found.stats["bytes PostHog read"]
