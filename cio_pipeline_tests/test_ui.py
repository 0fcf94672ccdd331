"""Dagster's UI as a data team uses it: a backfill is launched, the daemon runs it, and a browser shows what came of it.

It is `make dev`, beside a filled `.env` and in a filled environment that name other services.
"""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from cio_pipeline.defs.partitions import RANGE_START
from cio_pipeline.sandbox.processes import Sandbox
from cio_pipeline_tests.poison import Poison, poisoned

DEV = """
import sys
from pathlib import Path
from cio_pipeline.sandbox.dev import dev
sys.exit(dev(Path(sys.argv[1]), 2, CIO_DAYS_PER_RUN="1"))
"""
START_SECONDS, BACKFILL_SECONDS = 120, 300
ASSETS = ("posthog_events", "identities", "identity_history", "customers", "events", "rejects", "customerio_delivery")

LAUNCH = """mutation ($backfill: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $backfill) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
RUNS = """query ($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill { status runs(limit: 100) { status startTime tags { key value } } } } }"""
PARTITIONS = '{ assetNodeOrError(assetKey: {path: ["cio", "posthog_events"]}) { ... on AssetNode { partitionKeys } } }'

CATALOG = """{ assetNodes { assetKey { path } description kinds owners { __typename } metadataEntries { label }
  assetMaterializations(limit: 1) { metadataEntries { label } } } }"""
DESCRIBED = """{ assetNodes { assetChecksOrError { ... on AssetChecks { checks { name description } } } }
  repositoriesOrError { ... on RepositoryConnection { nodes { jobs { name description } schedules { name description }
    sensors { name description } allTopLevelResourceDetails { name description } } } } }"""
ENDS, REPORTS = ("posthog_project", "customerio_workspace"), ("dry_run", "explained_person")
ROW_COUNTS = {"dagster/row_count", "dagster/partition_row_count"}


@dataclass
class Dagster:
    """A `dagster dev` with its webserver and daemon."""

    url: str
    services: Sandbox
    folder: Path

    def ask(self, query: str, **variables: Any) -> Any:
        answer = requests.post(f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=60).json()
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def days(self) -> list[str]:
        """The partitions. Raises `KeyError` while the code is not loaded yet."""
        return list(self.ask(PARTITIONS)["assetNodeOrError"]["partitionKeys"])

    def backfill(self, days: list[str]) -> dict[str, Any]:
        """All assets of these days, as the UI launches them; what became of it."""
        params = {"assetSelection": [{"path": ["cio", asset]} for asset in ASSETS], "partitionNames": days}
        launched = self.ask(LAUNCH, backfill=params)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        deadline = time.monotonic() + BACKFILL_SECONDS
        while time.monotonic() < deadline:
            found: dict[str, Any] = self.ask(RUNS, id=launched["backfillId"])["partitionBackfillOrError"]
            if found["status"].startswith(("COMPLETED", "FAILED", "CANCELED")):
                return found
            time.sleep(1)
        raise AssertionError(found)


@pytest.fixture(scope="module")
def poison(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Poison]:
    with poisoned(tmp_path_factory.mktemp("poison")) as found:
        yield found


@pytest.fixture(scope="module")
def dagster(tmp_path_factory: pytest.TempPathFactory, poison: Poison) -> Iterator[Dagster]:
    """The UI on a sandbox whose last day is yesterday, with each day in runs of its own."""
    folder, log = tmp_path_factory.mktemp("dev"), tmp_path_factory.mktemp("log") / "log"
    command = [sys.executable, "-c", DEV, str(folder)]
    with log.open("w") as output:
        child = subprocess.Popen(
            command, env=poison.environment, cwd=poison.folder, stdout=output, stderr=output, start_new_session=True
        )
    try:
        posthog, customerio, ui = _addresses(child, log)
        found = Dagster(ui, Sandbox(posthog, customerio), folder)
        _wait_for(found, child, log)
        yield found
    finally:
        child.terminate()
        child.wait(60)


def _addresses(child: subprocess.Popen[bytes], log: Path) -> list[str]:
    """What `make dev` says of where everything is."""
    deadline = time.monotonic() + START_SECONDS
    pattern = r"PostHog: +(\S+)\nPeople page: (\S+), the local Customer\.io\n(?s:.*)\nDagster UI: +(\S+)\n"
    while not (found := re.search(pattern, log.read_text())):
        if time.monotonic() > deadline or child.poll() is not None:
            raise RuntimeError(f"make dev did not start: {log.read_text()[-2000:]}")
        time.sleep(0.2)
    return list(found.groups())


def _wait_for(dagster: Dagster, child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _is_loaded(dagster):
        if time.monotonic() > deadline or child.poll() is not None:
            raise RuntimeError(f"dagster dev did not start: {log.read_text()[-2000:]}")
        time.sleep(0.5)


def _is_loaded(dagster: Dagster) -> bool:
    try:
        return bool(dagster.days())
    except (requests.ConnectionError, KeyError):
        return False


@pytest.fixture(scope="module")
def backfilled(dagster: Dagster) -> dict[str, Any]:
    """A backfill that was given the newest day first."""
    return dagster.backfill(dagster.days()[::-1])


def test_a_backfill_from_the_ui_extracts_all_days_then_delivers_them_oldest_first(
    dagster: Dagster, backfilled: dict[str, Any]
) -> None:
    assert backfilled["status"] == "COMPLETED_SUCCESS"
    runs = sorted(backfilled["runs"], key=lambda run: run["startTime"])
    assert {run["status"] for run in runs} == {"SUCCESS"}
    tags = [{tag["key"]: tag["value"] for tag in run["tags"]} for run in runs]
    days = dagster.days()
    assert [found[RANGE_START] for found in tags if RANGE_START in found] == [*days, *days]
    people = requests.get(f"{dagster.services.customerio}/sandbox/people", timeout=30).json()
    sent = {event["timestamp"] for person in people for event in person["events"]}
    assert {str(datetime.fromtimestamp(time, UTC).date()) for time in sent} == set(days)


def test_every_asset_tells_its_columns_owners_kinds_and_rows(dagster: Dagster, backfilled: dict[str, Any]) -> None:
    nodes = {node["assetKey"]["path"][-1]: node for node in dagster.ask(CATALOG)["assetNodes"]}
    assert set(nodes) == {*ASSETS, *ENDS, *REPORTS}
    for name, node in nodes.items():
        assert [missing for missing in ("owners", "kinds", "description") if not node[missing]] == [], name
        assert "`" not in node["description"], name
        assert "dagster/column_schema" in {entry["label"] for entry in node["metadataEntries"]}, name
        rows = {entry["label"] for made in node["assetMaterializations"] for entry in made["metadataEntries"]} & ROW_COUNTS
        assert bool(rows) == (name in ASSETS), name


def test_a_run_is_tagged_with_where_it_read_and_where_it_sent(dagster: Dagster, backfilled: dict[str, Any]) -> None:
    tags = {tag["key"]: tag["value"] for run in backfilled["runs"] for tag in run["tags"]}
    assert tags["posthog"] == f"{dagster.services.posthog.partition('://')[2]}, project 1"
    assert tags["customerio"] == dagster.services.customerio.partition("://")[2]


def test_the_runs_list_shows_the_days_of_each_run(dagster: Dagster, backfilled: dict[str, Any]) -> None:
    shown = [tag["value"] for run in backfilled["runs"] for tag in run["tags"] if tag["key"] == "days"]
    assert sorted(shown) == sorted([*dagster.days(), *dagster.days()])


def test_what_the_ui_lists_says_what_it_is(dagster: Dagster) -> None:
    found = dagster.ask(DESCRIBED)
    [repository] = found["repositoriesOrError"]["nodes"]
    checks = [check for node in found["assetNodes"] for check in node["assetChecksOrError"].get("checks", [])]
    jobs = [job for job in repository["jobs"] if not job["name"].startswith("__")]
    listed = [*checks, *jobs, *repository["schedules"], *repository["sensors"], *repository["allTopLevelResourceDetails"]]
    assert len(listed) > 20
    assert [one["name"] for one in listed if not one["description"]] == []


def test_the_pages_show_the_receipt_and_the_people_in_a_browser(
    dagster: Dagster, backfilled: dict[str, Any], tmp_path: Path
) -> None:
    assert backfilled["status"] == "COMPLETED_SUCCESS"
    receipt = dom(f"{dagster.url}/assets/cio/customerio_delivery?view=partitions&partition={dagster.days()[0]}", tmp_path)
    wanted = ("new customers in all", "delivered in all", "upserts sent", "requests", "data:image/svg+xml")
    assert [shown for shown in wanted if shown not in receipt] == []
    assert "[Show " not in receipt
    schedule = dom(f"{dagster.url}/locations/cio_pipeline/schedules/customerio_daily", tmp_path)
    assert "Extracts and delivers yesterday" in schedule
    people = dom(dagster.services.customerio, tmp_path)
    assert "@" in people


def test_dev_touches_nothing_that_env_or_the_environment_name(poison: Poison, backfilled: dict[str, Any]) -> None:
    assert backfilled["status"] == "COMPLETED_SUCCESS"
    assert poison.touched() == []


def test_what_dev_writes_is_its_owners_alone(dagster: Dagster, backfilled: dict[str, Any]) -> None:
    written = [path for path in dagster.folder.rglob("*") if path.is_file() and path.name != "dagster.yaml"]
    assert len([path for path in written if path.suffix == ".db"]) > 2
    assert [path for path in written if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def dom(url: str, profile: Path) -> str:
    """The page as Chromium has it when its scripts have run."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("There is no Chromium on this machine to look at the pages with.")
    quiet = (
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-gpu",
    )
    command = [chromium, "--headless", "--no-sandbox", *quiet, f"--user-data-dir={profile}"]
    options = ["--window-size=1400,1000", "--virtual-time-budget=15000", "--dump-dom"]
    return subprocess.run([*command, *options, url], capture_output=True, text=True, check=True, timeout=120).stdout
