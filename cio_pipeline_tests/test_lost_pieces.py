"""What a run does when a piece is lost: it sends nothing once more that can start a campaign, unless somebody has said so.

docs/deploy.md has the same as a table.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.definitions import defs
from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.sandbox.processes import Sandbox
from cio_pipeline_tests.jobs import without_checks

TODAY = datetime.now(UTC).date()
YESTERDAY, LONG_AGO = str(TODAY - timedelta(days=1)), str(TODAY - timedelta(days=30))
SINK = "cio__customerio_delivery"


def event(number: int, day: str) -> dict[str, Any]:
    about = {"distinct_id": f"u{number}", "properties": {"$set": {"plan": "pro"}}}
    return {"uuid": f"00000000-0000-4000-8000-{number:012d}", "event": "paid", "timestamp": f"{day}T23:50:00Z", **about}


@dataclass
class World:
    """Both services, and the folder that has the ledger and the tables."""

    source: posthog.PostHog
    customerio: customerio.CustomerioServer
    data: Path
    instance: dg.DagsterInstance
    sent: int = 0
    """How many events have been sent, also those that Customer.io knows by their ids."""

    def __post_init__(self) -> None:
        answer = self.customerio.answer

        def counted(method: str, path: str, authorization: str, body: bytes) -> tuple[int, dict[str, Any]]:
            self.sent += body.count(b'"action":"event"')
            return answer(method, path, authorization, body)

        self.customerio.answer = counted  # type: ignore[method-assign]

    def run(self, day: str = YESTERDAY, **config: Any) -> int:
        """Runs the day; gives how many events went out. Raises what the delivery failed of."""
        before = self.sent
        result = without_checks().execute_in_process(
            instance=self.instance,
            partition_key=day,
            run_config={"ops": {SINK: {"ops": {"upsert_to_customerio": {"config": config}}}}},
            raise_on_error=False,
        )
        for step in result.all_events:
            if step.is_step_failure:
                failure = step.step_failure_data.user_failure_data
                raise NotDelivered(failure.description if failure else str(step.step_failure_data.error))
        return self.sent - before

    def lose_ledger(self) -> None:
        for path in self.data.glob("ledger.db*"):
            path.unlink()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    """One event of yesterday, and one of a month ago."""
    start = date.fromisoformat(LONG_AGO)
    stored = [event(1, YESTERDAY), event(2, LONG_AGO)]
    with posthog.serve(stored) as source, customerio.serve() as workspace, dg.DagsterInstance.ephemeral() as instance:
        for name, value in Sandbox(source.url, workspace.url).environment(tmp_path / "data", start).items():
            monkeypatch.setenv(name, value)
        yield World(source, workspace, tmp_path / "data", instance)


STOPPED = (
    r"^The ledger \(CIO_LEDGER_URL\) lacks .+ send 1 events that can start campaigns, .+ allows \(0\): nothing was sent\..+"
)


def test_a_lost_ledger_sends_nothing_that_can_start_a_campaign_until_somebody_says_so(world: World) -> None:
    assert world.run() == 1
    world.lose_ledger()
    with pytest.raises(NotDelivered, match=STOPPED):
        world.run()
    assert world.run(LONG_AGO) == 1, "an old event starts none"
    with pytest.raises(NotDelivered, match=STOPPED):
        world.run()
    assert world.run(hold_recent_events=72) == 0
    assert world.run(max_campaign_events=1) == 1, "Customer.io knows it by its id"
    assert world.customerio.totals()["events"] == 2
    assert world.run() == 0, "from then on it is as before"


def test_a_dry_run_says_that_the_ledger_was_lost(world: World, caplog: pytest.LogCaptureFixture) -> None:
    assert world.run() == 1
    world.lose_ledger()
    assert defs.resolve_job_def("customerio_dry_run").execute_in_process(instance=world.instance).success
    assert "it was lost, or is an older copy" in caplog.text
    assert "send 1 events that can start campaigns" in caplog.text


def test_a_ledger_restored_from_yesterday_is_noticed_by_what_it_has_not(world: World, tmp_path: Path) -> None:
    assert world.run(LONG_AGO) == 1
    shutil.copytree(world.data, tmp_path / "backup")
    assert world.run() == 1
    world.lose_ledger()
    for path in (tmp_path / "backup").glob("ledger.db*"):
        shutil.copy(path, world.data)
    world.source.add([event(3, LONG_AGO)])
    assert world.run(LONG_AGO) == 1, "which takes the number in the ledger that yesterday's event had"
    with pytest.raises(NotDelivered, match=STOPPED):
        world.run()
    assert world.run(max_campaign_events=1) == 1
    assert world.run() == 0


def test_a_lost_data_dir_sends_nothing_once_more(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CIO_LEDGER_URL", f"sqlite:///{tmp_path / 'elsewhere' / 'ledger.db'}")
    assert world.run() == 1
    shutil.rmtree(world.data)
    assert world.run() == 0


def test_tables_restored_from_an_older_copy_send_nothing_once_more(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CIO_LEDGER_URL", f"sqlite:///{tmp_path / 'elsewhere' / 'ledger.db'}")
    assert world.run(LONG_AGO) == 1
    shutil.copytree(world.data, tmp_path / "backup")
    assert world.run() == 1
    shutil.rmtree(world.data)
    shutil.copytree(tmp_path / "backup", world.data)
    assert (world.run(LONG_AGO), world.run()) == (0, 0)


def test_a_ledger_and_tables_that_are_both_lost_are_noticed_by_dagsters_receipts(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    assert (world.run(), world.run(LONG_AGO)) == (1, 1)
    shutil.rmtree(world.data)
    world.data.mkdir()
    assert defs.resolve_job_def("customerio_dry_run").execute_in_process(instance=world.instance).success
    assert "it was lost, or is an older copy" in caplog.text
    assert world.run(LONG_AGO) == 1, "an old event starts none"
    with pytest.raises(NotDelivered, match=STOPPED):
        world.run()
    assert world.run(max_campaign_events=1) == 1, "somebody has said that it is meant"
    world.source.add([event(3, YESTERDAY)])
    assert world.run() == 1, "from then on it is as before"


def test_receipts_of_days_without_events_or_past_the_ledgers_days_tell_of_no_lost_ledger(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = str(TODAY - timedelta(days=4))
    assert (world.run(empty), world.run(LONG_AGO)) == (0, 1)
    shutil.rmtree(world.data)
    monkeypatch.setenv("CIO_LEDGER_DAYS", "7")
    assert world.run() == 1


def test_a_ledger_checkpoint_that_cannot_be_read_stops_the_run(world: World) -> None:
    assert world.run() == 1
    (world.data / "ledger_checkpoint.json").write_text("{")
    with pytest.raises(NotDelivered, match=r"ledger_checkpoint\.json cannot be read \(JSONDecodeError\)"):
        world.run()


def test_a_day_that_the_ledger_no_longer_keeps_is_sent_only_by_resend(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIO_LEDGER_DAYS", "29")
    with pytest.raises(NotDelivered, match=rf"remembers deliveries for .+ this run begins at {LONG_AGO}: .+ resend"):
        world.run(LONG_AGO)
    assert world.run(LONG_AGO, resend=True) == 1
    assert world.run() == 1
    monkeypatch.delenv("CIO_LEDGER_DAYS")
    with pytest.raises(NotDelivered, match=rf"delivered of {LONG_AGO} is no longer in the ledger, .+ resend"):
        world.run(LONG_AGO)
    assert world.run() == 0
    assert world.run(LONG_AGO, resend=True) == 1
