"""The job redeliver_refused on refusals of several days: what it reads of them at once, and what it says when a day fails."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from cio_pipeline.definitions import defs
from cio_pipeline.defs.asset_keys import DELIVERY
from cio_pipeline.pipeline.accounting import DayCounts
from cio_pipeline.pipeline.derive import COUNTS, DERIVED, EXTRACTED, SETTINGS, settings_of
from cio_pipeline.pipeline.events import KEPT_EVENTS
from cio_pipeline.rules.classify import TO_SEND
from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline.sandbox.processes import Sandbox
from cio_pipeline.settings.load import load_settings
from cio_pipeline.state.acknowledgement import Acknowledgement
from cio_pipeline.state.ledger import Ledger
from cio_pipeline.state.refusals import Refusal
from cio_pipeline.tables.tables import Tables
from cio_pipeline_tests.customerio.test_refusals import answer_where

DAYS = ["2025-01-01", "2025-01-02", "2025-01-03"]
Workspace = customerio.CustomerioServer


def refused_event(number: int, day: str) -> Refusal:
    seconds = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())
    ulid = f"01JGGZ{number:020d}"
    of = {"type": "person", "action": "event", "name": "paid", "timestamp": seconds, "id": ulid}
    operation = json.dumps({**of, "identifiers": {"id": "jane"}, "attributes": {"number": number}})
    return Refusal(ulid, "event", "required name", "", operation, "id:jane")


def keep_tables(day: str, refused: list[Refusal]) -> None:
    """Writes the tables of a day whose events are these, as they were refused."""
    settings = load_settings()
    tables, made = Tables(settings.data_dir), {name: schema.empty_table() for name, schema in DERIVED.items()}
    rows = [{"ulid": one.item_id, "key": one.key, "operation": one.operation, "call": one.call} for one in refused]
    made["events"] = pa.Table.from_pylist(rows, DERIVED["events"])
    with tables.replace(day, {"posthog_events": KEPT_EVENTS}) as new:
        extracted = pa.Table.from_pylist([{} for _ in refused], KEPT_EVENTS)
        new.shards.append(new.writer.write(0, {"posthog_events": extracted}))
    with tables.replace(day, DERIVED) as new:
        new.shards.append(new.writer.write(0, made))
        counts = DayCounts(Counter({TO_SEND: len(refused)}))
        made_of = {EXTRACTED: tables.version("posthog_events", day).content_hash}
        new.metadata = {**made_of, SETTINGS: settings_of(settings.options), COUNTS: counts.to_json()}


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Workspace]:
    """A Customer.io, settings that name it, and a ledger with two refused events of each day, which the tables still have."""
    monkeypatch.setattr("cio_pipeline.defs.delivery.run_delivery.RETRY_SECONDS", 0)
    monkeypatch.setattr("cio_pipeline.http.retry.BACKOFF_SECONDS", 0.001)
    with customerio.serve() as server:
        for name, value in Sandbox("http://127.0.0.1:9", server.url).environment(tmp_path / "data", date(2025, 1, 1)).items():
            monkeypatch.setenv(name, value)
        ledger = Ledger(load_settings().ledger_url)
        for at, day in enumerate(DAYS):
            refused = [refused_event(2 * at + which, day) for which in range(2)]
            ledger.acknowledge(day, Acknowledgement(refused=refused))
            keep_tables(day, refused)
        yield server


def redeliver(instance: dg.DagsterInstance, **config: Any) -> dg.ExecuteInProcessResult:
    job = defs.resolve_job_def("redeliver_refused")
    run_config = {"ops": {"send_refused_again": {"config": config}}}
    return job.execute_in_process(run_config=run_config, instance=instance, raise_on_error=False)


def still_open(result: dg.ExecuteInProcessResult) -> list[Any]:
    """What each evaluation of the check nothing_refused has found."""
    return [one.metadata["refused, open"].value for one in result.get_asset_check_evaluations()]


def test_refusals_are_read_a_day_at_a_time_and_the_check_once(
    workspace: Workspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, refusals = list[tuple[str | None, int | None]](), Ledger.refusals

    def noted(self: Ledger, day: str | None = None, reason: str | None = None, limit: int | None = None) -> Any:
        read.append((day, limit))
        return refusals(self, day, reason, limit)

    monkeypatch.setattr(Ledger, "refusals", noted)
    result = redeliver(instance)
    assert result.success
    assert [one for one in read if one[1] is None] == [(day, None) for day in DAYS * 2]
    assert still_open(result) == [0]
    assert workspace.totals()["events"] == 6


def test_a_day_that_fails_leaves_the_check_with_what_is_open_then(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    answer_where(workspace, lambda path, body: b'"number": 2' in body, (503, {}))
    result = redeliver(instance)
    assert not result.success
    assert still_open(result) == [4, 4], "once for each try of the step"
    assert len(instance.fetch_observations(dg.AssetRecordsFilter(asset_key=DELIVERY), limit=9).records) == 1


def test_an_older_copy_of_the_ledger_sends_no_refused_event_that_can_start_a_campaign_until_somebody_says_so(
    workspace: Workspace, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    """It may have been accepted after the copy was made."""
    today = datetime.now(UTC).date().isoformat()
    Ledger(load_settings().ledger_url).acknowledge(today, Acknowledgement(refused=[refused_event(9, today)]))
    keep_tables(today, [refused_event(9, today)])
    lacking = {"number": 99, "day": DAYS[0], "first_id": "01JGGZ"}
    (tmp_path / "data" / "ledger_checkpoint.json").write_text(json.dumps(lacking))
    [failure] = [event for event in redeliver(instance).all_events if event.is_step_failure]
    assert "lacks deliveries that ledger_checkpoint.json" in str(failure.step_failure_data.user_failure_data)
    assert workspace.totals()["events"] == 0
    assert redeliver(instance, max_campaign_events=1).success
    assert workspace.totals()["events"] == 7


def test_what_was_refused_of_a_day_without_tables_stays_open_and_the_other_days_are_sent(
    workspace: Workspace, instance: dg.DagsterInstance, caplog: pytest.LogCaptureFixture
) -> None:
    """As after an hourly run, which leaves none."""
    today = datetime.now(UTC).date().isoformat()
    Ledger(load_settings().ledger_url).acknowledge(today, Acknowledgement(refused=[refused_event(9, today)]))
    result = redeliver(instance)
    assert (result.success, still_open(result), workspace.totals()["events"]) == (True, [1], 6)
    why = f"What was refused of {today} cannot be sent again before customers, events and rejects of it are materialized."
    assert why in caplog.messages
    [failure] = [event for event in redeliver(instance, partition=today).all_events if event.is_step_failure]
    assert why in str(failure.step_failure_data.user_failure_data)
