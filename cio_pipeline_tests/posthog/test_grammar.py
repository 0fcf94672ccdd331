"""Parses every HogQL query that the product sends with PostHog's own grammar.

Beside what is here, `conftest.py` has the grammar read each query that the sandbox's PostHog answers in any test.
"""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cio_pipeline.posthog import reading
from cio_pipeline.posthog.query import QuerySource
from cio_pipeline.rules.options import AttributesFrom
from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.sandbox.posthog.answers import Answer
from cio_pipeline.sandbox.posthog.project import Project
from cio_pipeline_tests.grammar import parsed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="hogql-parser has wheels for all Linux, but not for all macOS")

MODES: tuple[AttributesFrom, ...] = ("set", "person", "auto")
START = datetime(2026, 3, 2, tzinfo=UTC)


def all_queries(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The queries for a check, for a day whose slices are full, and for history, with all settings that change a query."""
    sent: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(reading, "MAX_ROWS", 4)
    project, ask = Project(), Project.query

    def query_noted(self: Project, body: Any) -> Answer:
        sent.append((body["query"]["query"], body["query"]["values"]))
        return ask(self, body)

    monkeypatch.setattr(Project, "query", query_noted)
    named = {"distinct_id": "u", "timestamp": START.isoformat()}
    events = [
        {**named, "uuid": f"00000000-0000-4000-8000-00000000000{n}", "event": "order" if n else "$identify"} for n in range(9)
    ]
    with posthog.serve(events, project) as server:
        for allowlist in ((), ("order",)):
            for attributes_from in MODES:
                source = QuerySource(server.url, "1", "phx_sandbox", allowlist, attributes_from)
                source.check()
                list(source.events(START, START + timedelta(days=1)).frames)
                list(source.history(START + timedelta(days=1)).frames)
    return sent


def test_every_query_is_valid_hogql_and_has_the_values_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = all_queries(monkeypatch)
    assert len({hogql for hogql, _ in sent}) == 16, "a check; counts, slices, a slice's count; of history"
    for hogql, values in sent:
        tree = parsed(hogql)
        assert not tree.get("error"), f"{tree}: {hogql}"
        assert set(re.findall(r"{(\w+)}", hogql)) == set(values)


def test_every_query_of_events_has_a_limit_no_offset_and_no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    trees = [parsed(hogql) for hogql, _ in all_queries(monkeypatch) if "FROM events" in hogql]
    assert trees
    for tree in trees:
        assert 0 < tree["limit"]["value"] <= 50_000
        assert "offset" not in tree
        assert "order_by" not in tree


def test_the_grammar_detects_errors() -> None:
    assert parsed("SELECT event FROM")["error"] is True
