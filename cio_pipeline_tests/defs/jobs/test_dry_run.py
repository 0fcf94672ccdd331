"""The job customerio_dry_run: what it tells of its days, and that it changes nothing that is kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from cio_pipeline.cli.commands import main
from cio_pipeline.definitions import defs
from cio_pipeline.defs.asset_keys import asset_key
from cio_pipeline.defs.assets.deliver import customerio_delivery
from cio_pipeline.defs.jobs.dry_run import dry_run
from cio_pipeline.state.ledger import Ledger
from cio_pipeline_tests.defs.assets.test_deliver import refusing
from cio_pipeline_tests.defs.test_days_of_a_run import (
    DAYS,
    ONLY_PERSONLESS,
    RECENT,
    Start,
    event,
    execute,
    stream,
)
from cio_pipeline_tests.defs.test_days_of_a_run import start as start

BLANK = event(9, "paid", " ", f"{DAYS[0]}T11:00:00Z")


def look(instance: dg.DagsterInstance, days: list[str], **config: Any) -> dict[str, Any]:
    """Runs the job; gives what it tells on the asset's page."""
    result = defs.resolve_job_def("customerio_dry_run").execute_in_process(
        instance=instance,
        run_config={"ops": {"preview_delivery": {"config": {"from": days[0], "to": days[-1], **config}}}},
    )
    [seen] = [one.asset_observation_data.asset_observation for one in result.all_events if one.is_asset_observation]
    assert seen.asset_key == dry_run.key
    return {name: value.value for name, value in seen.metadata.items()}


def rows(table: Any) -> list[dict[str, str]]:
    """The rows of a table on a page, as text."""
    found = [{name: str(cell) for name, cell in record.data.items()} for record in table.records]
    return [] if found == [{"": "none"}] else found


def files(folder: Path) -> dict[str, bytes]:
    """All that is kept, but for what the databases keep of their own work."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.name.endswith("-shm")}


def test_it_tells_what_each_day_and_all_would_send_with_a_new_customer_counted_once(
    start: Start, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = start([*stream(DAYS), BLANK])
    monkeypatch.delattr(Ledger, "hold_delivery_lock")
    seen = look(instance, DAYS)
    assert (seen["result"], seen["days"]) == ("Nothing was sent.", "2025-01-01 to 2025-01-03 (3 days)")
    assert (seen["new customers"], seen["events to send"], seen["events under 72 hours"]) == (4, 6, 0)
    names = ("day", "events read", "refused by the rules", "new customers", "customers changed", "events to send")
    assert [[row[name] for name in names] for row in rows(seen["by day"])] == [
        ["2025-01-01", "3", "1", "2", "0", "2"],
        ["2025-01-02", "2", "0", "1", "1", "2"],
        ["2025-01-03", "2", "0", "1", "1", "2"],
        ["in all", "7", "1", "4", "2", "6"],
    ]
    assert rows(seen["events by name"]) == [{"event": "visit", "events to send": "6"}]
    assert rows(seen["refused or left out by the rules"]) == [
        {"what": "event", "reason": "distinct_id is blank (R14)", "count": "1"}
    ]
    assert seen["days with more refused than CIO_REFUSED_SHARE allows"] == 1
    assert "jane" not in str(seen["sample"])
    assert "id n***0: upsert at 2025" in str(seen["sample"].records)
    assert [request.method for request in workspace.requests] == ["GET"], "only the keys are checked"
    assert instance.get_runs()[0].tags["dry_run"] == "true"


def test_it_changes_no_partition_no_check_and_nothing_that_is_kept(
    start: Start, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    workspace = start([*stream(DAYS), event(9, "paid", "jane", f"{DAYS[0]}T11:00:00Z")], CIO_IDENTIFY_BY_EMAIL="Yes")
    refusing(workspace, monkeypatch, "paid")
    execute(instance, DAYS[:2])

    def state() -> Any:
        nodes = defs.resolve_asset_graph().asset_nodes
        checks = instance.event_log_storage.get_latest_asset_check_execution_by_key(
            [key for node in nodes for key in node.check_keys]
        )
        return (
            {key: check.status for key, check in checks.items()},
            {node.key: sorted(instance.get_materialized_partitions(node.key)) for node in nodes if node.key != dry_run.key},
            instance.fetch_observations(customerio_delivery.key, limit=9).records,
            len(instance.fetch_materializations(customerio_delivery.key, limit=99).records),
        )

    before, kept, sent = state(), files(tmp_path / "data"), workspace.workspace.totals()
    seen = look(instance, DAYS)
    assert [row["events to send"] for row in rows(seen["by day"])] == ["0", "0", "2", "2"]
    assert [row["refused by Customer.io before"] for row in rows(seen["by day"])] == ["1", "0", "0", "1"]
    assert (state(), files(tmp_path / "data"), workspace.workspace.totals()) == (before, kept, sent)
    assert len(instance.fetch_observations(dry_run.key, limit=9).records) == 1


def test_the_run_after_it_sends_what_it_told(start: Start, instance: dg.DagsterInstance) -> None:
    identify = event(8, "$identify", "jane", f"{DAYS[1]}T11:00:00Z", **{"$set": {"email": "jane@example.com"}})
    workspace = start([*stream(DAYS), identify], CIO_ANONYMOUS_USERS="emails", CIO_IDENTIFY_BY_EMAIL="Yes")
    seen = look(instance, DAYS)
    assert (seen["new customers"], seen["events to send"], seen["what would stop the run"]) == (1, 2, "nothing")
    assert "jane@" not in str(seen)
    execute(instance, DAYS)
    assert workspace.workspace.totals() == {"people": 1, "events": 2}
    assert look(instance, DAYS)["events to send"] == 0


def test_a_day_that_was_derived_before_the_history_was_read_is_shown_as_a_run_would_derive_it(
    start: Start, instance: dg.DagsterInstance
) -> None:
    identify = event(8, "$identify", "jane", "2024-12-31T11:00:00Z")
    workspace = start([*stream(DAYS[:1]), identify], CIO_ANONYMOUS_USERS="identified")
    job = defs.resolve_job_def("customerio_sync")
    for assets in (["posthog_events", "identities", "customers", "events", "rejects"], ["identity_history"]):
        keys = [asset_key(name) for name in assets]
        job.execute_in_process(instance=instance, partition_key=DAYS[0], asset_selection=keys)
    assert look(instance, DAYS[:1])["events to send"] == 1
    execute(instance, DAYS[:1])
    assert workspace.workspace.totals()["events"] == 1


def test_it_tells_what_would_stop_the_run(start: Start, instance: dg.DagsterInstance) -> None:
    start(stream(DAYS), CIO_MAX_NEW_CUSTOMERS="3", CIO_ANONYMOUS_USERS="identified")
    assert look(instance, DAYS)["what would stop the run"] == "nothing"
    seen = look(instance, DAYS[1:])
    assert seen["what would stop the run"].startswith("1 earlier day was never learned (2025-01-01)")


@pytest.mark.parametrize(
    ("days", "config", "stops"),
    [
        (DAYS, {}, "This run would make 4 new customers, more than CIO_MAX_NEW_CUSTOMERS"),
        (DAYS, {"max_new_customers": 4}, "nothing"),
        (DAYS, {"limit": 1}, "nothing"),
        (RECENT, {"max_new_customers": 4, "max_campaign_events": 1}, "events that can start campaigns, more than"),
        (RECENT[1:], {"max_campaign_events": 1}, "nothing"),
    ],
)
def test_the_limits_are_those_of_a_run(
    start: Start, instance: dg.DagsterInstance, days: list[str], config: dict[str, int], stops: str
) -> None:
    start(stream(days), CIO_MAX_NEW_CUSTOMERS="3")
    assert stops in look(instance, days, **config)["what would stop the run"]


def test_it_looks_at_yesterday_unless_days_are_named(start: Start, instance: dg.DagsterInstance) -> None:
    start(stream(RECENT))
    result = defs.resolve_job_def("customerio_dry_run").execute_in_process(instance=instance)
    [seen] = [one.asset_observation_data.asset_observation for one in result.all_events if one.is_asset_observation]
    assert seen.metadata["days"].value == RECENT[-1]
    assert seen.metadata["events under 72 hours"].value == 2


def test_too_recent_limited_suppressed_and_personless_are_in_its_table(
    start: Start, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    start([*stream(DAYS), event(9, "visit", "nobody", f"{DAYS[2]}T10:00:00Z", **{"$process_person_profile": False})])
    assert rows(look(instance, DAYS)["by day"])[-1][ONLY_PERSONLESS] == "1"
    held = rows(look(instance, DAYS, hold_recent_events=24 * 365 * 100)["by day"])[-1]
    assert (held["events to send"], held["events held as too recent"]) == ("0", "7")
    assert rows(look(instance, DAYS, limit=1)["by day"])[-1]["customers beyond the limit"] == "4"
    (tmp_path / "list").write_text("jane\nsomebody\n")
    monkeypatch.setenv("CIO_SUPPRESSED_FILE", str(tmp_path / "list"))
    seen = look(instance, DAYS)
    assert rows(seen["by day"])[-1]["events suppressed"] == "3"
    assert seen["people that the suppression list names"] == 2


def test_the_command_prints_the_same_as_lines(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start([*stream(DAYS), BLANK], CIO_EVENT_ALLOWLIST="visit,vist,paid")
    assert main(["dry-run", "--from", DAYS[0], "--to", DAYS[2]]) == 1
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[-1] == "Nothing was sent."
    assert "CIO_EVENT_ALLOWLIST: no event of these days is named 'vist'." in lines
    assert "Of 2025-01-01 the rules refuse 33.3%, more than the 1.0% that CIO_REFUSED_SHARE allows." in lines
    [total] = [line.split() for line in lines if line.strip().startswith("in all")]
    assert total[:4] == ["in", "all", "6", "4"]
    assert total[8:11] == ["7", "0", "1"]
    assert not [line for line in lines if "Skipping step" in line or "{" in line]
    assert said.err == ""
    monkeypatch.setenv("CIO_REFUSED_SHARE", "50%")
    assert main(["run", "--partition", DAYS[0], "--dry-run"]) == 0
    assert re.search(r"\n  events to send +2\n", capsys.readouterr().out)
    assert main(["dry-run", "--partition", "2024-12-31"]) == 2


def test_nobodys_data_is_in_what_dagster_keeps(start: Start, instance: dg.DagsterInstance) -> None:
    secret = {"$set": {"email": "jane@secret.example"}, "note": "secret-value"}
    start([event(1, "visit", "jane-doe-secret", f"{DAYS[0]}T10:00:00Z", **secret)])
    look(instance, DAYS[:1])
    [run] = instance.get_runs()
    assert "secret" not in str([run, *instance.all_logs(run.run_id)])
