"""What Dagster loads: the documented assets, job and schedule, and days that leave receipts of their own."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from cio_pipeline.definitions import defs
from cio_pipeline.defs.asset_keys import DELIVERY, asset_key
from cio_pipeline.defs.partitions import RANGE_END, RANGE_START
from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline.sandbox.posthog import product
from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.sandbox.processes import Sandbox
from cio_pipeline_tests.receipts import values

HERE = Path(__file__).parents[2]

ASSETS = {"posthog_events", "identities", "identity_history", "customers", "events", "rejects", "customerio_delivery"}

REPORTS = {"dry_run", "explained_person"}
"""What jobs have seen, without writing a table."""


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[customerio.CustomerioServer]:
    with posthog.serve(product.days(1, date(2025, 1, 1), 3, 30)) as source, customerio.serve() as workspace:
        for name, value in Sandbox(source.url, workspace.url).environment(tmp_path / "data", date(2025, 1, 1)).items():
            monkeypatch.setenv(name, value)
        yield workspace


def test_the_definitions_load() -> None:
    dg.Definitions.validate_loadable(defs)
    graph = defs.resolve_asset_graph()
    assert graph.materializable_asset_keys == {asset_key(name) for name in ASSETS}
    assert graph.external_asset_keys == {asset_key(name) for name in {"posthog_project", "customerio_workspace", *REPORTS}}


def test_the_assets_are_listed_in_the_order_of_a_day() -> None:
    graph, seen = defs.resolve_asset_graph(), set[dg.AssetKey]()
    for asset in defs.assets or []:
        keys = set(asset.keys) if isinstance(asset, dg.AssetsDefinition) else {asset.key}  # type: ignore[union-attr]
        assert all(graph.get(key).parent_keys <= seen | keys for key in keys), keys
        seen |= keys


def test_the_tables_have_one_partitioned_parent_for_with_two_dagster_may_refuse_every_backfill() -> None:
    """It joins what it has by each in an order of its own, and takes equal days for unequal (`tuple.__ne__` of its subsets)."""
    graph = defs.resolve_asset_graph()
    for name in ("customers", "events", "rejects"):
        assert graph.get(asset_key(name)).parent_keys == {asset_key("identities")}


def test_the_schedule_asks_for_yesterday_and_two_days_before_it() -> None:
    tick = dg.build_schedule_context(scheduled_execution_time=datetime(2026, 3, 10, 3, 15, tzinfo=UTC))
    [request] = defs.resolve_schedule_def("customerio_daily").evaluate_tick(tick).run_requests or []
    assert (request.tags[RANGE_START], request.tags[RANGE_END]) == ("2026-03-07", "2026-03-09")


def test_a_previewed_tick_in_the_future_asks_for_no_day_that_is_not_over() -> None:
    tick = dg.build_schedule_context(scheduled_execution_time=datetime.now(UTC) + timedelta(days=2))
    assert not defs.resolve_schedule_def("customerio_daily").evaluate_tick(tick).run_requests


def test_every_job_schedule_and_sensor_says_what_it_does() -> None:
    repository = defs.get_repository_def()
    told = {one.name: one.description for one in repository.get_all_jobs() if not one.name.startswith("__")}
    told |= {one.name: one.description for one in repository.schedule_defs}
    told |= {one.name: one.description for one in repository.sensor_defs}
    assert len(told) == 12
    assert [name for name, description in told.items() if not description] == []


def test_a_range_of_days_leaves_a_receipt_and_an_account_for_each(
    services: customerio.CustomerioServer, instance: dg.DagsterInstance
) -> None:
    job = defs.resolve_job_def("customerio_sync")
    result = job.execute_in_process(instance=instance, tags={RANGE_START: "2025-01-01", RANGE_END: "2025-01-03"})
    receipts = {
        str(event.materialization.partition): event.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.asset_key == DELIVERY
    }
    assert sorted(receipts) == ["2025-01-01", "2025-01-02", "2025-01-03"]
    sent = sum(int(str(values(receipt)["events sent"])) for receipt in receipts.values())
    assert sent == services.workspace.totals()["events"] > 0
    checks = {check.check_name: check.passed for check in result.get_asset_check_evaluations()}
    failed = {name for name, passed in checks.items() if not passed}
    assert failed == {"few_refused_by_the_rules", "yesterday_delivered"}, "of 30 events one is refused"
    for name in ASSETS - {"identity_history"}:
        assert len(instance.get_materialized_partitions(asset_key(name))) == 3


def test_extracting_and_deriving_without_learning_is_refused(
    services: customerio.CustomerioServer, instance: dg.DagsterInstance
) -> None:
    assets = [asset for asset in defs.assets or [] if isinstance(asset, dg.AssetsDefinition)]
    run: dict[str, Any] = {"instance": instance, "resources": defs.resources, "partition_key": "2025-01-02"}
    assert dg.materialize(
        assets, selection=[asset_key(name) for name in ("posthog_events", "identity_history", "identities")], **run
    ).success
    assert dg.materialize(assets, selection=[asset_key(name) for name in ("customers", "events", "rejects")], **run).success
    with pytest.raises(dg.Failure, match="select identities, too"):
        dg.materialize(
            assets, selection=[asset_key(name) for name in ("posthog_events", "customers", "events", "rejects")], **run
        )


def test_days_that_were_never_learned_are_shown(services: customerio.CustomerioServer, instance: dg.DagsterInstance) -> None:
    result = defs.resolve_job_def("customerio_sync").execute_in_process(instance=instance, partition_key="2025-01-03")
    [check] = [check for check in result.get_asset_check_evaluations() if check.check_name == "earlier_days_learned"]
    assert not check.passed
    assert check.metadata["days missing"].value == 2
    assert check.severity == dg.AssetCheckSeverity.WARN


def test_dg_and_the_workspace_load_the_same_code_location_by_the_same_name() -> None:
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["tool"]["dg"]["project"]
    [location] = yaml.safe_load((HERE / "workspace.yaml").read_text())["load_from"]
    names = (location["python_module"]["location_name"], location["python_module"]["module_name"])
    assert names == (project["code_location_name"], project["code_location_target_module"])


@pytest.mark.parametrize("job", ["customerio_dry_run", "customerio_backfill", "redeliver_refused"])
def test_a_launchpad_begins_with_what_is_to_be_filled_in_and_nothing_else(job: str) -> None:
    found = defs.resolve_job_def(job)
    assert found.run_config is not None
    assert [name for name, given in found.run_config.items() if given] == ["ops"]
    assert dg.validate_run_config(found, found.run_config)
