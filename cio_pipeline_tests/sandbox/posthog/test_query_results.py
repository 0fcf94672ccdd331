"""The format of the PostHog sandbox's answer to a query: JSON values, types, and whether there are more rows."""

from datetime import datetime
from uuid import UUID

import orjson

from cio_pipeline.sandbox.posthog.hogql import Statement
from cio_pipeline.sandbox.posthog.query_results import query_results

COLUMNS = [("id", "UUID"), ("at", "TIMESTAMP"), ("known", "BOOLEAN"), ("name", "VARCHAR"), ("n", "BIGINT")]
EVENT = UUID("018f3173-7000-7421-831e-e849e8bb6ffe")


def test_values_are_written_as_posthog_does() -> None:
    rows = [(EVENT, datetime(2026, 7, 1, 22, 30), True, "a", 5), (None, None, None, None, None)]
    answer = query_results(rows, COLUMNS, "Europe/Berlin", Statement("SELECT", limited=True))
    assert orjson.loads(answer["results"]) == [
        [str(EVENT), "2026-07-02T00:30:00+02:00", 1, "a", 5],
        [None, None, None, None, None],
    ]
    assert answer["columns"] == ["id", "at", "known", "name", "n"]
    kinds = ["UUID", "DateTime64(6, 'Europe/Berlin')", "UInt8", "String", "UInt64"]
    assert [kind for _, kind in answer["types"]] == kinds
    assert "hasMore" not in answer


def test_utc_is_written_with_a_z() -> None:
    answer = query_results([(datetime(2026, 7, 1),)], [("at", "TIMESTAMP")], "UTC", Statement("SELECT", limited=True))
    assert orjson.loads(answer["results"]) == [["2026-07-01T00:00:00Z"]]


def test_without_a_limit_the_answer_has_a_hundred_rows_and_has_more() -> None:
    for count, more in ((100, False), (101, True)):
        rows = [(n,) for n in range(count)]
        answer = query_results(rows, [("n", "BIGINT")], "UTC", Statement("SELECT", limited=False))
        assert (len(orjson.loads(answer["results"])), answer["hasMore"], answer["limit"]) == (100, more, 100)


def test_no_rows_are_an_empty_list() -> None:
    assert query_results([], COLUMNS, "UTC", Statement("SELECT", limited=True))["results"] == b"[]"
