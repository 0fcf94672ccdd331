"""The metrics, as a parser of Prometheus' text format reads them, and the dashboard that shows them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cio_pipeline.cli.commands import main
from cio_pipeline.cli.metrics import OTHERS, REASONS, in_text, metrics
from cio_pipeline.customerio.counts import LEFT_FOR_ANOTHER_RUN
from cio_pipeline.defs.asset_keys import DELIVERY
from cio_pipeline.packed_ids import pack_ids
from cio_pipeline.sandbox.processes import Sandbox
from cio_pipeline.settings.places import PROJECT
from cio_pipeline.state.acknowledgement import Acknowledgement
from cio_pipeline.state.ledger import Ledger
from cio_pipeline.state.refusals import Refusal

DAYS = ("2026-03-02", "2026-03-04")
NOW = datetime(2026, 3, 5, 6, tzinfo=UTC)
DASHBOARD = json.loads((PROJECT / "deploy" / "grafana.json").read_text())
Samples = dict[tuple[str, str], float]


def parsed(text: str) -> Samples:
    """Each sample by its name and its one label's value."""
    families = text_string_to_metric_families(text)
    return {(one.name, "".join(one.labels.values())): one.value for family in families for one in family.samples}


@dg.op
def work() -> None:
    """Nothing."""


@dg.op
def fail() -> None:
    """Raises."""
    raise dg.Failure("for once")


def ran(instance: dg.DagsterInstance, job: str, op: dg.OpDefinition) -> None:
    dg.GraphDefinition(name=job, node_defs=[op]).to_job().execute_in_process(instance=instance, raise_on_error=False)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """A Dagster with two days that were delivered, the one between them not, and two runs."""
    with dg.DagsterInstance.ephemeral() as found:
        for day in DAYS:
            found.report_runless_asset_event(dg.AssetMaterialization(DELIVERY, partition=day))
        ran(found, "customerio_sync", work)
        ran(found, "customerio_hourly", work)
        ran(found, "customerio_hourly", fail)
        yield found


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger with three events and two customers of the newer day, and nothing refused."""
    found = Ledger(f"sqlite:///{tmp_path / 'ledger-of-three-events.db'}")
    ids = pack_ids([f"{number:026d}" for number in range(3)]).tobytes()
    found.acknowledge(DAYS[1], Acknowledgement(ids, customers={"id:a": b"", "id:b": b""}))
    yield found
    found.close()


def refuse(ledger: Ledger, reasons: Iterable[str]) -> None:
    refused = [Refusal(str(item), "event", reason, "", "{}", "id:a") for item, reason in enumerate(reasons)]
    ledger.acknowledge(DAYS[0], Acknowledgement(refused=refused))


def test_they_say_how_far_the_deliveries_are(instance: dg.DagsterInstance, ledger: Ledger) -> None:
    refuse(ledger, ["invalid name", "invalid name", 'a "quoted" \\ reason of jane@example.com'])
    found = parsed(in_text(metrics(instance, ledger, NOW)))
    assert found.pop(("cio_pipeline_last_run_duration_seconds", "customerio_sync")) >= 0
    assert found.pop(("cio_pipeline_last_run_duration_seconds", "customerio_hourly")) >= 0
    ended = [found.pop(("cio_pipeline_last_run_end_timestamp_seconds", f"customerio_{job}")) for job in ("sync", "hourly")]
    assert min(ended) > datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    assert found == {
        ("cio_pipeline_newest_day_timestamp_seconds", ""): datetime(2026, 3, 4, tzinfo=UTC).timestamp(),
        ("cio_pipeline_newest_day_age_seconds", ""): 6 * 3600,
        ("cio_pipeline_newest_day_events", ""): 3,
        ("cio_pipeline_newest_day_new_customers", ""): 2,
        ("cio_pipeline_days_missed", ""): 1,
        ("cio_pipeline_refusals_open", "invalid name"): 2,
        ("cio_pipeline_refusals_open", 'a "quoted" \\ reason of j***@e***.com'): 1,
        ("cio_pipeline_refusals_open", OTHERS): 0,
        ("cio_pipeline_last_run_succeeded", "customerio_sync"): 1,
        ("cio_pipeline_last_run_succeeded", "customerio_hourly"): 0,
    }


def test_a_day_of_which_a_run_has_left_something_is_neither_the_newest_nor_delivered(
    instance: dg.DagsterInstance, ledger: Ledger
) -> None:
    days = [f"2026-02-{day}" for day in range(10, 21)]
    in_part = {LEFT_FOR_ANOTHER_RUN: 1}
    for day in (*days, "2026-03-04"):
        instance.report_runless_asset_event(dg.AssetMaterialization(DELIVERY, partition=day, metadata=in_part))
    instance.report_runless_asset_event(dg.AssetMaterialization(DELIVERY, partition="2026-02-09"))
    found = parsed(in_text(metrics(instance, ledger, NOW)))
    newest = "cio_pipeline_newest_day_timestamp_seconds", ""
    assert found[newest] == datetime(2026, 3, 2, tzinfo=UTC).timestamp()
    assert found["cio_pipeline_days_missed", ""] == 21, "10 February to 1 March, and 3 March"
    instance.report_runless_asset_event(dg.AssetMaterialization(DELIVERY, partition="2026-03-02", metadata=in_part))
    found = parsed(in_text(metrics(instance, ledger, NOW)))
    assert found[newest] == datetime(2026, 2, 9, tzinfo=UTC).timestamp()


def test_many_reasons_are_few_series_and_no_refusal_is_left_out(instance: dg.DagsterInstance, ledger: Ledger) -> None:
    refuse(ledger, (f"reason {number}" for number in range(REASONS + 30)))
    counts = [count for (name, _), count in parsed(in_text(metrics(instance, ledger, NOW))).items() if "refusals" in name]
    assert (len(counts), sum(counts)) == (REASONS + 1, REASONS + 30)


def test_the_command_prints_nothing_else_and_before_anything_is_delivered_no_day(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = Sandbox("http://127.0.0.1:1", "http://127.0.0.1:1").environment(tmp_path, date(2026, 3, 1))
    for name, value in nowhere.items():
        monkeypatch.setenv(name, value)
    assert main(["metrics"]) == 0
    assert parsed(capsys.readouterr().out) == {("cio_pipeline_days_missed", ""): 0, ("cio_pipeline_refusals_open", OTHERS): 0}
    (tmp_path / "ledger.db").write_bytes(b"no database" * 100)
    assert main(["metrics"]) == 1
    failed = capsys.readouterr()
    assert failed.out == ""
    assert failed.err.startswith("The ledger's database (CIO_LEDGER_URL) cannot be used")


def test_the_dashboard_shows_metrics_that_are_printed_and_each_of_them(instance: dg.DagsterInstance, ledger: Ledger) -> None:
    printed = {name for name, _ in parsed(in_text(metrics(instance, ledger, NOW)))}
    named = set(re.findall(r"cio_pipeline_\w+", " ".join(target["expr"] for _, target in targets())))
    assert named <= printed
    guide = (PROJECT / "docs" / "deploy.md").read_text()
    assert {name for name in printed if f"`{name}`" not in guide} == set()


def test_the_dashboards_panels_lie_beside_each_other_and_ask_the_source_that_is_chosen() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [cell for panel in panels for cell in covered(panel["gridPos"])]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    [variable] = DASHBOARD["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    assert {one["datasource"]["uid"] for panel, target in targets() for one in (panel, target)} == {f"${{{variable['name']}}}"}


def targets() -> Iterator[tuple[Any, Any]]:
    """Each query of the dashboard, with its panel."""
    yield from ((panel, target) for panel in DASHBOARD["panels"] for target in panel["targets"])


def covered(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    """The cells of Grafana's grid that a panel takes."""
    rows, columns = range(place["y"], place["y"] + place["h"]), range(place["x"], place["x"] + place["w"])
    yield from ((column, row) for row in rows for column in columns)
