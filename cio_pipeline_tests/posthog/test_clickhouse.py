"""The product's queries on a real ClickHouse with PostHog's sort key: every event once, little read (`make test-clickhouse`).

HogQL is near enough to ClickHouse's SQL here: PostHog puts in the team and calls the persons' properties by another name.
CLICKHOUSE_ROWS=3000000 measures a large day.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import requests

from cio_pipeline.posthog.client import Answer
from cio_pipeline.posthog.query import QuerySource

pytestmark = pytest.mark.clickhouse

ROWS = int(os.environ.get("CLICKHOUSE_ROWS", "300000"))
NAMES = 40
START = datetime(2026, 3, 2, tzinfo=UTC)
END = START + timedelta(days=1)
FIRST = int((START - timedelta(days=1)).timestamp()) * 1_000_000

TABLE = """
CREATE TABLE events (uuid UUID, event String, properties String, timestamp DateTime64(6, 'UTC'), team_id Int64,
distinct_id String, created_at DateTime64(6, 'UTC'), person_properties String)
ENGINE = MergeTree PARTITION BY toYYYYMM(timestamp)
ORDER BY (team_id, toDate(timestamp), event, cityHash64(distinct_id), cityHash64(uuid))
"""
# Three days, the middle one whole to its last microsecond, a few names with most of the events, one distinct_id with 2% of all.
DAYS = """
INSERT INTO events
WITH cityHash64(number) AS chance, hex(sipHash128(number, 1)) AS noise,
  fromUnixTimestamp64Micro(toInt64({start} + intDiv(number % {each} * 86399999999, {each} - 1)
  + intDiv(number, {each}) * 86400000000), 'UTC') AS moment
SELECT
  reinterpretAsUUID(sipHash128(number)),
  concat('event ', toString(least({names} - 1, floor(-log((chance % 1000000 + 1) / 1000001) * {names} / 6)))),
  concat('{{"n":', toString(number), ',"text":"', repeat(noise, 12), '"}}'),
  moment, 1,
  if(number % 50 = 0, 'server', concat('u', toString(cityHash64(number, 2) % ({each} / 20)))),
  moment,
  if(number % 100 = 7, '{{"email":"a@example.com"}}', '{{}}')
FROM numbers(3 * {each})
"""


class ClickHouse:
    """A database with the events, which records its queries."""

    def __init__(self, folder: Path) -> None:
        self._session = importlib.import_module("chdb.session").Session(str(folder))
        self._turn = threading.Lock()
        for statement in ("CREATE DATABASE posthog", "USE posthog", TABLE):
            self._session.query(statement)
        self._session.query(DAYS.format(names=NAMES, each=ROWS, start=FIRST))
        self.queries, self.bytes_read = 0, 0

    def add(self, event: str, at: datetime) -> None:
        """One event more."""
        self._session.query(
            f"INSERT INTO events SELECT generateUUIDv4(), '{event}', '{{}}', '{at:%Y-%m-%d}', 1, 'u', '{at:%Y-%m-%d}', '{{}}'"
        )

    def select(self, sql: str) -> Any:
        """The answer as ClickHouse's JSON."""
        settings = "SETTINGS date_time_output_format='iso', output_format_json_quote_64bit_integers=1"
        with self._turn:
            answer = json.loads(bytes(self._session.query(f"{sql} {settings}", "JSONCompact").bytes()))
        self.queries += 1
        self.bytes_read += answer["statistics"]["bytes_read"]
        return answer

    def ask(self, hogql: str, values: dict[str, Any], *_: Any, **__: Any) -> Answer:
        """What stands for `QuerySource.ask`."""
        sql = re.sub(r"{(\w+)}", lambda name: literal(values[name[1]]), hogql).replace("poe.properties", "person_properties")
        answer = self.select(sql.replace("FROM events WHERE", "FROM events WHERE team_id = 1 AND"))
        response = requests.Response()
        response.status_code = 200
        return Answer(response, {"columns": [column["name"] for column in answer["meta"]], "results": answer["data"]})

    def scan(self) -> int:
        """The bytes that one full scan of the day reads."""
        before = self.bytes_read
        self.select(
            "SELECT sum(cityHash64(uuid, event, distinct_id, timestamp, created_at, properties)) FROM events WHERE team_id = 1"
            f" AND timestamp >= '{START:%Y-%m-%d %H:%M:%S}' AND timestamp < '{END:%Y-%m-%d %H:%M:%S}'"
        )
        return self.bytes_read - before


def literal(value: Any) -> str:
    if isinstance(value, list):
        return "(" + ", ".join(literal(one) for one in value) + ")"
    return str(value) if isinstance(value, int) else "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


@pytest.fixture(scope="module")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> ClickHouse:
    return ClickHouse(tmp_path_factory.mktemp("clickhouse"))


@pytest.fixture
def source(clickhouse: ClickHouse, monkeypatch: pytest.MonkeyPatch) -> type[QuerySource]:
    monkeypatch.setattr(QuerySource, "ask", staticmethod(clickhouse.ask))
    clickhouse.queries = clickhouse.bytes_read = 0
    return QuerySource


def read(source: QuerySource) -> pd.DataFrame:
    frames = [frame.drop(columns="properties") for frame in source.events(START, END).frames]
    return pd.concat(frames, ignore_index=True)


def test_a_large_day_is_read_once_and_cheaply(source: type[QuerySource], clickhouse: ClickHouse) -> None:
    events = read(source("http://localhost", "1", "key", (), attributes_from="set"))
    queries, bytes_read, scan = clickhouse.queries, clickhouse.bytes_read, clickhouse.scan()
    names = events["event"].nunique()
    most = names + ROWS / 30_000
    print(
        f"\n{ROWS:,} events, {names} names: {queries} queries (at most {most:.0f}), {bytes_read / scan:.2f} times a full scan"
    )
    assert len(events) == events["uuid"].nunique() == ROWS
    assert (events["timestamp"].min(), events["timestamp"].max()) == (START, END - timedelta(microseconds=1))
    assert names > NAMES * 0.7
    assert queries <= most
    assert bytes_read <= 2.5 * scan


@pytest.mark.parametrize(("attributes_from", "share"), [("set", 0.0), ("person", 0.01), ("auto", 0.01)])
def test_queries_with_conditions_and_person_properties_run_too(
    source: type[QuerySource], attributes_from: Any, share: float
) -> None:
    events = read(source("http://localhost", "1", "key", ("event 1", "it's"), attributes_from))
    others = events[events["event"] != "event 1"]
    assert len(events) > len(others)
    assert share * ROWS * 0.8 <= len(others) <= share * ROWS
    assert events["person_properties"].notna().all() == (attributes_from != "set")


def test_full_slices_are_split_and_still_add_up(source: type[QuerySource], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cio_pipeline.posthog.reading.MAX_ROWS", ROWS // 30)
    assert read(source("http://localhost", "1", "key", (), attributes_from="set"))["uuid"].nunique() == ROWS


def test_the_query_for_the_history_runs_too(source: type[QuerySource], clickhouse: ClickHouse) -> None:
    clickhouse.add("$identify", START - timedelta(days=400))
    found = source("http://localhost", "1", "key", (), attributes_from="person").history(START)
    assert found.expected == len(pd.concat(found.frames)) == 1
