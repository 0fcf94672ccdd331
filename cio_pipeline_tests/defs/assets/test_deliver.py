"""The sink in Dagster: run config, receipts, another try and a clear end, and what was refused sent again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest
import sqlalchemy as sa

from cio_pipeline.cli.commands import main
from cio_pipeline.customerio.counts import LEFT_FOR_ANOTHER_RUN
from cio_pipeline.definitions import defs
from cio_pipeline.defs.asset_keys import DELIVERY, asset_key
from cio_pipeline.defs.pages.receipts import OPEN_REFUSALS
from cio_pipeline.defs.pages.tables import size
from cio_pipeline.pipeline.events import KEPT_EVENTS
from cio_pipeline.rules.stitching import merges
from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.sandbox.processes import Sandbox
from cio_pipeline.settings.load import load_settings
from cio_pipeline.state.delivery_lock import IsHeld, hold_delivery_lock
from cio_pipeline.state.identities import Identities
from cio_pipeline.state.learned import Learned
from cio_pipeline.state.ledger import Ledger
from cio_pipeline.tables.tables import Tables
from cio_pipeline_tests.postgres import URL_PASSWORD
from cio_pipeline_tests.receipts import values

DAY = "2025-01-01"
PARTITION = "dagster/partition"
SINK = "cio__customerio_delivery.upsert_to_customerio"
EXTRACTED = asset_key("posthog_events")
Workspace = customerio.CustomerioServer
EVENTS: list[dict[str, Any]] = [
    {
        "uuid": f"00000000-0000-4000-8000-00000000000{number}",
        "event": name,
        "distinct_id": distinct_id,
        "timestamp": "2025-01-01T10:00:00Z",
        "properties": {"$set": {"email": f"{distinct_id}@example.com", "plan": "pro"}},
    }
    for number, (name, distinct_id) in enumerate(
        [("signed up", "jane"), ("paid", "jane"), ("signed up", "joe"), ("left", "joe")]
    )
]


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Workspace]:
    """A Customer.io, with four events of two people in PostHog, and settings that name both."""
    monkeypatch.setattr("cio_pipeline.defs.delivery.run_delivery.RETRY_SECONDS", 0)
    monkeypatch.setattr("cio_pipeline.http.retry.BACKOFF_SECONDS", 0.001)
    with posthog.serve(iter(EVENTS)) as source, customerio.serve() as server:
        for name, value in Sandbox(source.url, server.url).environment(tmp_path / "data", date(2025, 1, 1)).items():
            monkeypatch.setenv(name, value)
        yield server


def run(instance: dg.DagsterInstance, **config: Any) -> dict[str, Any]:
    """Runs the day; gives the sink's receipt."""
    result = defs.resolve_job_def("customerio_sync").execute_in_process(
        instance=instance,
        partition_key=DAY,
        run_config={"ops": {"cio__customerio_delivery": {"ops": {"upsert_to_customerio": {"config": config}}}}},
    )
    [receipt] = result.asset_materializations_for_node(SINK)
    return values(receipt.metadata)


def the_job() -> dg.JobDefinition:
    """The job, for Dagster to load again by this name."""
    return defs.resolve_job_def("customerio_sync")


def delivered(instance: dg.DagsterInstance) -> set[str]:
    """The days that Dagster shows as materialized."""
    return instance.get_materialized_partitions(DELIVERY)


def redeliver(instance: dg.DagsterInstance, **config: Any) -> dict[str, Any]:
    """Runs the job; gives its receipt."""
    result = defs.resolve_job_def("redeliver_refused").execute_in_process(
        instance=instance, run_config={"ops": {"send_refused_again": {"config": config}}}
    )
    [event] = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    return {name: value.value for name, value in event.step_output_data.metadata.items()}


def refusing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The workspace refuses events of this name."""
    batch = workspace.workspace.batch

    def refuse(body: bytes) -> Any:
        items = json.loads(body)["batch"]
        spoilt = [{**item, "name": ""} if item.get("name") == name else item for item in items]
        return batch(json.dumps({"batch": spoilt}).encode())

    monkeypatch.setattr(workspace.workspace, "batch", refuse)


def test_the_receipt_shows_counts_traffic_and_a_sample_without_data(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    receipt = run(instance)
    assert (receipt["upserts sent"], receipt["new customers"], receipt["events sent"]) == (2, 2, 4)
    assert receipt["requests"] == 1
    assert receipt["bytes"] == size(workspace.requests[-1].bytes)
    assert receipt["events per second"]
    assert len(receipt["sample"]) == 6
    assert "example.com" not in str(receipt)


def test_run_config_leaves_recent_events_for_later_limits_the_customers_and_resends(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    held = run(instance, hold_recent_events=24 * 365 * 100)
    assert (held["upserts sent"], held["events sent"], held["events held as too recent"]) == (0, 0, 4)
    limited = run(instance, limit=1)
    assert (limited["upserts sent"], limited["events sent"], limited["customers beyond the limit"]) == (1, 2, 1)
    assert run(instance)["events sent"] == 2
    assert run(instance, resend=True)["events sent"] == 4
    assert workspace.workspace.totals()["events"] == 4
    with pytest.raises(dg.DagsterInvalidConfigError):
        run(instance, dry_ran=True)


def test_the_receipt_says_what_a_run_has_left_for_another_on_purpose(
    workspace: Workspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Upserts and events: each of the two people has one and two."""
    assert run(instance, hold_recent_events=24 * 365 * 100)[LEFT_FOR_ANOTHER_RUN] == 6
    assert run(instance, limit=1)[LEFT_FOR_ANOTHER_RUN] == 3
    (tmp_path / "list").write_text("joe\n")
    with monkeypatch.context() as suppressing:
        suppressing.setenv("CIO_SUPPRESSED_FILE", str(tmp_path / "list"))
        assert LEFT_FOR_ANOTHER_RUN not in run(instance, limit=1), "who is suppressed is not left for another run"
    assert run(instance, limit=1)[LEFT_FOR_ANOTHER_RUN] == 3
    assert LEFT_FOR_ANOTHER_RUN not in run(instance, limit=2)
    for nothing_left in ({}, {"limit": 1}, {"limit": 1, "resend": True}, {"hold_recent_events": 24 * 365 * 100}):
        assert LEFT_FOR_ANOTHER_RUN not in run(instance, **nothing_left), "all is delivered already"


def test_what_is_refused_is_not_left_for_another_run(
    workspace: Workspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(workspace, monkeypatch, "left")
    receipt = run(instance, limit=2)
    assert (receipt[OPEN_REFUSALS], LEFT_FOR_ANOTHER_RUN in receipt) == (1, False)


def test_credentials_are_checked_once_a_run_and_a_delivered_day_costs_no_more(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    run(instance)
    run(instance)
    assert [request.method for request in workspace.requests] == ["GET", "POST", "GET"]


def test_a_service_that_is_away_for_a_while_is_tried_once_more(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    workspace.faults = lambda number, path: ("status", 503, {}) if 2 <= number <= 12 else None
    assert run(instance)["events sent"] == 4
    assert workspace.workspace.totals()["events"] == 4


def test_reexecution_from_failure_sends_the_rest_and_extracts_nothing_anew(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cio_pipeline.customerio.batches.MAX_REQUEST_BYTES", 400)
    workspace.faults = lambda number, path: ("status", 401, {}) if number >= 4 else None
    sync = dg.reconstructable(the_job)
    with dg.DagsterInstance.local_temp(str(tmp_path)) as home:
        failed = dg.execute_job(sync, home, tags={PARTITION: DAY})
        assert not failed.success
        before = workspace.workspace.totals()
        assert 0 < before["events"] + before["people"] < 6
        workspace.faults = lambda number, path: None
        again = dg.ReexecutionOptions.from_failure(failed.run_id, home)
        assert dg.execute_job(sync, home, reexecution_options=again, tags={PARTITION: DAY}).success
        assert len(home.fetch_materializations(EXTRACTED, limit=9).records) == 1
    assert workspace.workspace.totals() == {"people": 2, "events": 4}


def test_a_service_that_stays_away_is_an_end_with_its_sentence(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    workspace.faults = lambda number, path: ("status", 503, {}) if number >= 2 else None
    assert main(["run", "--partition", DAY]) == 1
    assert capsys.readouterr().err == (
        "Customer.io (127.0.0.1) could not be reached in 9 tries: it answered 503."
        f" 0 of 4 events of {DAY} are delivered and kept: run the day again for the rest.\n"
    )
    assert len(workspace.requests) == 1 + 2 * 9


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        (
            "CIO_SUPPRESSED_FILE",
            "/nowhere/list-secret",
            "CIO_SUPPRESSED_FILE cannot be read (FileNotFoundError): nothing is sent.",
        ),
        (
            "CIO_LEDGER_URL",
            f"postgresql://cio:{URL_PASSWORD}@127.0.0.1:1/cio",
            "The ledger's database (CIO_LEDGER_URL) cannot be used: connection failed",
        ),
    ],
)
def test_a_wrong_setting_ends_the_run_before_anything_is_sent(
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    setting: str,
    value: str,
    sentence: str,
) -> None:
    monkeypatch.setenv(setting, value)
    assert main(["run", "--partition", DAY]) == 1
    said = capsys.readouterr().err
    assert said.startswith(sentence)
    assert said.count("\n") == 1
    assert URL_PASSWORD not in said
    assert workspace.workspace.totals() == {"people": 0, "events": 0}


def test_what_is_left_for_another_run_is_said(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--partition", DAY, "--limit", "1"]) == 0
    assert ", 1 customer beyond the limit, 2 events beyond the limit.\n" in capsys.readouterr().out


def test_an_email_on_the_list_stops_its_person_on_days_before_it_was_known_too(
    workspace: Workspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = Identities(load_settings().ledger_url)
    facts = pd.DataFrame(
        [("joe", False, "joe@new.example.com", 1)], columns=["distinct_id", "identified", "email", "email_set_at"]
    )
    links = frozenset({("joe@new.example.com", "joe")})
    store.replace("2025-01-02", "set", 1, [Learned.of(facts, merges(pd.DataFrame(columns=KEPT_EVENTS.names)), links)])
    (tmp_path / "list").write_text("joe@new.example.com\n")
    monkeypatch.setenv("CIO_SUPPRESSED_FILE", str(tmp_path / "list"))
    assert run(instance)["customers suppressed"] == 1
    assert workspace.workspace.totals() == {"people": 1, "events": 2}


def test_a_run_that_waits_for_another_says_so(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    holding = Ledger(load_settings().ledger_url).hold_delivery_lock(lambda: None)
    holding.__enter__()

    def until_said(engine: sa.Engine, waiting: Callable[[], None]) -> AbstractContextManager[IsHeld]:
        def said() -> None:
            waiting()
            holding.__exit__(None, None, None)

        return hold_delivery_lock(engine, said)

    monkeypatch.setattr("cio_pipeline.state.ledger.hold_delivery_lock", until_said)
    assert main(["run", "--partition", DAY]) == 0
    said = capsys.readouterr().out
    assert said.count("Another run is delivering with this ledger: waiting until it is done.\n") == 1
    assert "mismatch" not in said


def test_refusals_are_sent_again_by_reason_and_partition_and_closed(
    workspace: Workspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        refusing(workspace, broken, "paid")
        assert run(instance)["refused by Customer.io"] == 1
    for unheard_of in ({"partition": "2025-01-02"}, {"reason": "another reason"}):
        with pytest.raises(dg.Failure, match=r"Still refused: 1 for required name \(2025-01-01 to 2025-01-01\)\.$"):
            redeliver(instance, **unheard_of)
    receipt = redeliver(instance, partition=DAY, reason="required name")
    assert (receipt["events sent"], receipt["refused still, of all days"]) == (1, 0)
    assert workspace.workspace.totals()["events"] == 4
    assert run(instance)["refused by Customer.io"] == 0


def test_a_refused_event_of_somebody_suppressed_by_email_is_not_sent_again(
    workspace: Workspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as broken:
        refusing(workspace, broken, "paid")
        run(instance)
    (tmp_path / "list").write_text("jane@example.com\n")
    monkeypatch.setenv("CIO_SUPPRESSED_FILE", str(tmp_path / "list"))
    receipt = redeliver(instance)
    assert (receipt["refusals suppressed"], receipt["refused still, of all days"]) == (1, 0)
    assert workspace.workspace.totals()["events"] == 3
    monkeypatch.delenv("CIO_SUPPRESSED_FILE")
    assert run(instance)["events sent"] == 1, "the ledger has forgotten it, so it is sent once nobody is suppressed"


def deliver_only(instance: dg.DagsterInstance) -> None:
    defs.resolve_job_def("customerio_sync").execute_in_process(
        instance=instance, partition_key=DAY, asset_selection=[asset_key("customerio_delivery")]
    )


def test_tables_that_were_derived_under_other_settings_are_not_delivered(
    workspace: Workspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which matters where somebody materializes only the delivery, or sends refusals again."""
    with monkeypatch.context() as broken:
        refusing(workspace, broken, "paid")
        run(instance)
    sent = len(workspace.requests)
    monkeypatch.setenv("CIO_EVENT_ALLOWLIST", "signed up")
    for do in (deliver_only, redeliver):
        with pytest.raises(dg.Failure, match=rf"rejects of {DAY} were derived under other settings .*: nothing was sent\."):
            do(instance)
    assert {request.path for request in workspace.requests[sent:]} <= {"/api/v1/accounts/region"}
    run(instance)
    receipt = redeliver(instance)
    assert (receipt["events sent"], receipt["refusals no longer to be sent"], receipt["refused still, of all days"]) == (
        0,
        1,
        0,
    )
    deliver_only(instance)
    monkeypatch.setenv("CIO_ALLOW_CONSENT", "No")
    deliver_only(instance)


def test_tables_that_do_not_account_for_the_extracted_events_are_not_delivered(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    run(instance)
    tables, sent = Tables(load_settings().data_dir), len(workspace.requests)
    [pointer] = Path(load_settings().data_dir, "derived").rglob("current.json")
    stored = json.loads(pointer.read_text())
    for counts in ({}, {"sent": -1, "filtered: x": tables.version("posthog_events", DAY).rows + 1}):
        off = {**stored["about"], "counts": {**stored["about"]["counts"], "outcomes": counts}}
        pointer.write_text(json.dumps({**stored, "about": off}))
        with pytest.raises(dg.Failure, match=rf"rejects of {DAY} do not account for the extracted events, each once \(R15\)"):
            deliver_only(instance)
    assert {request.path for request in workspace.requests[sent:]} <= {"/api/v1/accounts/region"}


@pytest.mark.parametrize(("setting", "value"), [("CIO_ATTRIBUTES_FROM", "set"), ("CIO_EVENT_ALLOWLIST", "paid")])
def test_events_that_were_extracted_under_other_settings_are_neither_learned_nor_derived(
    workspace: Workspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, setting: str, value: str
) -> None:
    """As where only the tables are materialized again after a setting has changed: they would lack what was not extracted."""
    with monkeypatch.context() as before:
        before.setenv("CIO_EVENT_ALLOWLIST", "signed up")
        run(instance)
    monkeypatch.setenv(setting, value)
    for assets in (["identities"], ["customers", "events", "rejects"]):
        selection = [asset_key(asset) for asset in assets]
        with pytest.raises(dg.Failure, match=rf"^posthog_events of {DAY} were extracted under another CIO_"):
            defs.resolve_job_def("customerio_sync").execute_in_process(
                instance=instance, partition_key=DAY, asset_selection=selection
            )
    assert run(instance)["delivered in all"] > 0


def test_tables_of_events_that_were_extracted_again_since_are_not_delivered(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    run(instance)
    tables, sent = Tables(load_settings().data_dir), len(workspace.requests)
    rows = [pa.Table.from_pandas(shard, KEPT_EVENTS) for shard in tables.read("posthog_events", DAY)]
    with tables.replace(DAY, {"posthog_events": KEPT_EVENTS}) as new:
        new.shards.append(new.writer.write(0, {"posthog_events": pa.concat_tables(rows[::-1])}))
        new.shards.append(new.writer.write(1, {"posthog_events": KEPT_EVENTS.empty_table()}))
    with pytest.raises(dg.Failure, match=rf"rejects of {DAY} were derived before posthog_events .+ extracted again"):
        deliver_only(instance)
    assert {request.path for request in workspace.requests[sent:]} <= {"/api/v1/accounts/region"}
