"""What the assets are given to keep things in, the days they work in, and the schedule: each by its settings."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import dagster as dg
import pandas as pd
import pytest

from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.customerio.forecast import RunLimits
from cio_pipeline.customerio.selection import DeliveryOptions
from cio_pipeline.customerio.suppression import Suppressed
from cio_pipeline.definitions import defs
from cio_pipeline.defs import connections
from cio_pipeline.defs.assets.deliver import DeliveryConfig
from cio_pipeline.defs.assets.derive import _add_metadata
from cio_pipeline.defs.checks.derive import _earlier_days_learned, _later_days_up_to_date
from cio_pipeline.defs.dead_runs import FOLDER
from cio_pipeline.defs.delivery.preconditions import (
    RunLimitsConfig,
    _ranges,
    check_days_are_in_ledger,
    check_no_day_is_missing,
)
from cio_pipeline.defs.failures import RunNotStarted
from cio_pipeline.defs.partitions import PARTITION, day_bounds, days_before
from cio_pipeline.defs.resources import PostHogResource, StoreResource
from cio_pipeline.defs.services import new_event_source, track_client
from cio_pipeline.defs.store import Store
from cio_pipeline.pipeline.accounting import DayCounts
from cio_pipeline.pipeline.derive import DERIVED
from cio_pipeline.rules.stitching import MERGE_COLUMNS
from cio_pipeline.settings.load import load_settings, settings_to_show
from cio_pipeline.state.identity_tables import HISTORY_PARTITION
from cio_pipeline.state.learned import Learned
from cio_pipeline.tables.files import StorageError
from cio_pipeline_tests.postgres import URL_PASSWORD
from cio_pipeline_tests.receipts import rows
from cio_pipeline_tests.rules.streams import event, tables

KEYS = {
    "CUSTOMERIO_SITE_ID": "site",
    "CUSTOMERIO_API_KEY": "key",
    "POSTHOG_PROJECT_ID": "1",
    "POSTHOG_PERSONAL_API_KEY": "phx",
    "CIO_STITCH_ANONYMOUS_DAYS": "2",
}
NOTHING = Learned.of(
    pd.DataFrame(columns=["distinct_id", "identified", "email", "email_set_at"]).astype({"identified": bool}),
    pd.DataFrame(columns=MERGE_COLUMNS).astype({"timestamp": "datetime64[us, UTC]"}),
)

LOADED = """
import json
from datetime import datetime, timezone
import dagster as dg
from cio_pipeline.definitions import defs
from cio_pipeline.defs.partitions import RANGE_END, RANGE_START, backfill_policy, daily_partitions
def tick(*at):
    context = dg.build_schedule_context(scheduled_execution_time=datetime(*at, tzinfo=timezone.utc))
    data = defs.resolve_schedule_def("customerio_daily").evaluate_tick(context)
    requests = [[request.run_key, request.tags[RANGE_START], request.tags[RANGE_END]] for request in data.run_requests]
    return [data.skip_message, *requests]
def when(name):
    schedule = defs.resolve_schedule_def(name)
    return [schedule.cron_schedule, schedule.execution_timezone]
print(json.dumps([daily_partitions.get_first_partition_key(), backfill_policy.max_partitions_per_run,
      *map(when, ["customerio_daily", "customerio_hourly_schedule", "customerio_checks_daily"]),
      tick(2026, 3, 10, 3, 15), tick(2026, 3, 2, 3, 15), tick(2026, 3, 1, 3, 15)]))
"""


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    for name, value in {**KEYS, "CIO_DATA_DIR": str(tmp_path / "data")}.items():
        monkeypatch.setenv(name, value)
    with StoreResource().yield_for_execution(dg.build_init_resource_context()) as store:
        yield store


def learn(store: Store, day: str, events: int = 1, setting: str | None = None) -> None:
    store.identities.replace(day, setting or store.learned_under, events, [NOTHING])


def test_what_a_run_writes_is_its_owners_and_it_may_open_many_files(store: Store) -> None:
    assert os.umask(0o077) == 0o077
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft in (hard, resource.RLIM_INFINITY) or soft >= 10_000
    assert oct((Path(str(store.tables.root)) / "ledger.db").stat().st_mode)[-3:] == "600"


def test_a_run_has_one_ledger_and_one_engine(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.identities is store.identities
    assert store.identities._engine is store.ledger._engine


def test_the_seconds_after_which_postgresql_ends_a_session_are_set(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Mock()
    monkeypatch.setenv("CIO_LEDGER_LOCK_SECONDS", "7")
    for name in ("Ledger", "Identities"):
        monkeypatch.setattr(f"cio_pipeline.defs.resources.{name}", made)
    with StoreResource().yield_for_execution(dg.build_init_resource_context()):
        assert [call.args[1] for call in made.call_args_list] == [7, 7]


def test_the_days_before_the_last_derived_one_count_and_only_those_of_the_setting(store: Store) -> None:
    for day in ("2025-01-01", "2025-01-03"):
        learn(store, day)
    assert _earlier_days_learned(store).passed
    store.identities.mark_derived("2025-01-03", "what was known")
    check = _earlier_days_learned(store)
    assert (check.passed, check.metadata["first"].value, check.metadata["days missing"].value) == (False, "2025-01-02", 1)
    learn(store, "2025-01-02", setting="another setting")
    assert not _earlier_days_learned(store).passed
    learn(store, "2025-01-02")
    assert _earlier_days_learned(store).passed
    store.identities.mark_derived("2025-01-05", "what was known")
    assert _earlier_days_learned(store).metadata["first"].value == "2025-01-04"


def test_days_that_were_learned_under_another_setting_are_missing_to_a_delivery(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIO_ANONYMOUS_USERS", "identified")
    store = replace(store, settings=load_settings())
    learn(store, "2025-01-01")
    learn(store, "2025-01-02", setting="another setting")
    for other in ("another setting", f"{store.learned_under} before 2024-12-01"):
        learn(store, HISTORY_PARTITION, setting=other)
        with pytest.raises(NotDelivered, match=r"^What PostHog knew before the current CIO_START_DATE was never read"):
            check_no_day_is_missing(store, ["2025-01-03"])
    learn(store, HISTORY_PARTITION, setting=f"{store.learned_under} before 2025-01-01")
    with pytest.raises(NotDelivered, match=r"^1 earlier day was never learned \(2025-01-02\)"):
        check_no_day_is_missing(store, ["2025-01-03"])
    with pytest.raises(NotDelivered, match=r"^1 earlier day was never learned \(2025-01-02\)"):
        check_no_day_is_missing(store, ["2025-01-02", "2025-01-03"])
    check_no_day_is_missing(store, ["2025-01-01", "2025-01-02"])


def test_the_shortest_ledger_has_the_first_day_of_a_nightly_run_also_after_the_next_midnight(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, days in (("CIO_LATE_DAYS", "10"), ("CIO_LEDGER_DAYS", "12")):
        monkeypatch.setenv(name, days)
    store = replace(store, settings=load_settings())
    first, before = (str(datetime.now(UTC).date() - timedelta(days=back)) for back in (1 + 10 + 1, 1 + 10 + 2))
    check_days_are_in_ledger(store, [first], resend=False)
    with pytest.raises(NotDelivered, match=rf"from {first} on, and this run begins at {before}"):
        check_days_are_in_ledger(store, [before], resend=False)


def test_what_a_run_is_allowed_goes_before_the_settings_also_where_that_is_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIO_MAX_NEW_CUSTOMERS", "7")
    monkeypatch.setenv("CIO_MAX_CAMPAIGN_EVENTS", "8")
    store = replace(store, settings=load_settings())
    assert RunLimitsConfig().run_limits(store, is_backfill=True) == RunLimits(7, 8)
    assert RunLimitsConfig(max_new_customers=0, max_campaign_events=0).run_limits(store, is_backfill=True) == RunLimits(0, 0)
    assert RunLimitsConfig(max_new_customers=9, max_campaign_events=9).run_limits(store, is_backfill=False) == RunLimits(
        9, None
    )


def test_with_a_stale_ledger_only_the_runs_own_config_lets_events_that_can_start_campaigns_pass(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIO_MAX_CAMPAIGN_EVENTS", "5000")
    store = replace(store, settings=load_settings())
    for config, allowed in ((RunLimitsConfig(), 0), (RunLimitsConfig(max_campaign_events=3), 3)):
        limits = config.run_limits(store, is_backfill=False, is_ledger_stale=True)
        assert limits.max_campaign_events == allowed


def test_what_is_chosen_for_a_run_and_set_about_consent_is_what_a_delivery_goes_by() -> None:
    listed = Suppressed(frozenset({"u1"}))
    assert DeliveryConfig(resend=True, limit=3).delivery_options(listed, "No") == DeliveryOptions(
        listed, resend=True, limit=3, allow_consent="No"
    )


def test_missing_days_are_named_as_ranges_of_days_that_follow_each_other_and_three_at_most() -> None:
    assert _ranges(["2025-01-01", "2025-01-02", "2025-01-04"]) == "2025-01-01 to 2025-01-02, 2025-01-04"
    odd = [f"2025-01-0{number}" for number in (1, 3, 5, 7, 9)]
    assert _ranges(odd) == "2025-01-01, 2025-01-03, 2025-01-05 and 2 more"


@pytest.mark.parametrize("name", ["posthog", "customerio", "store"])
def test_each_resource_refuses_a_day_that_is_none_before_it_reads_a_setting(name: str) -> None:
    """A run may need but one of them."""
    context: Any = SimpleNamespace(run=SimpleNamespace(tags={PARTITION: "2024-12-31"}), log=None, instance=None)
    with (
        pytest.raises(RunNotStarted, match="2024-12-31 is not a partition"),
        cast("dg.ConfigurableResource[Any]", (defs.resources or {})[name]).yield_for_execution(context),
    ):
        pass


def test_a_run_whose_tables_cannot_be_reached_releases_its_file(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cio_pipeline.defs.resources.check_bucket", Mock(side_effect=StorageError("It is away.")))
    context: Any = SimpleNamespace(run=SimpleNamespace(tags={}, run_id="a-run"), log=None, instance=None)
    with pytest.raises(RunNotStarted, match=r"^It is away\.$"), StoreResource().yield_for_execution(context):
        pass
    assert list((tmp_path / "data" / FOLDER).iterdir()) == []


@pytest.mark.parametrize(
    ("source", "made"),
    [("batch_export", "BatchExportSource"), ("file_download", "FileDownloadSource"), ("events_api", None)],
)
def test_the_source_is_the_one_that_is_set_with_the_days_that_events_may_be_late(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, made: str | None
) -> None:
    given: list[tuple[object, ...]] = []
    for name in ("BatchExportSource", "FileDownloadSource", "EventsApiSource"):

        def new(*rest: object, name: str = name, **named: object) -> None:
            given.append((name, *rest, *named.values()))

        monkeypatch.setattr(f"cio_pipeline.defs.services.{name}", new)
    chosen = {"CIO_EVENT_SOURCE": source, "CIO_BATCH_EXPORT_URL": str(tmp_path), "CIO_LATE_DAYS": "5"}
    for setting, value in chosen.items():
        monkeypatch.setenv(setting, value)
    new_event_source(load_settings())
    [(source_class, *arguments)] = given
    assert source_class == (made or "EventsApiSource")
    assert (5 in arguments) == (made is not None)


def test_the_requests_per_second_are_the_settings(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[object, ...]] = []
    monkeypatch.setenv("CIO_REQUESTS_PER_SECOND", "3")
    monkeypatch.setattr("cio_pipeline.defs.services.TrackClient", lambda *arguments: given.append(arguments))
    track_client(load_settings())
    assert given[0][:4] == ("https://track.customer.io", "site", "key", 3)


def test_the_run_config_cannot_set_what_a_resources_page_only_shows(store: Store) -> None:
    with pytest.raises(RunNotStarted, match=r"^The run config cannot set host: POSTHOG_HOST\. Shown only"):
        PostHogResource(host="https://eu.posthog.com").create_resource(dg.build_init_resource_context())


def test_what_pages_show_of_the_settings_has_no_key(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIO_LEDGER_URL", f"postgresql://cio:{URL_PASSWORD}@127.0.0.1:1/cio")
    settings = settings_to_show()
    shown = [connections.ledger_text(settings), connections.rules_text(settings), connections.as_markdown(settings)]
    assert shown[0] == "postgresql://127.0.0.1:1/cio"
    assert "[Customer.io (track.customer.io, US)](https://fly.customer.io)" in shown[2]
    assert [secret for secret in (URL_PASSWORD, *KEYS.values()) if len(secret) > 3 and secret in " ".join(shown)] == []


def test_the_pages_say_so_where_a_setting_is_wrong_and_the_definitions_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIO_REFUSED_SHARE", "many")
    assert connections.loaded_settings() is None


def test_what_became_of_a_day_is_in_its_metadata_by_reason_the_most_first(store: Store) -> None:
    told: dict[str, dict[str, Any]] = {}
    with store.tables.replace("2025-01-01", DERIVED) as new:
        new.shards.append(new.writer.write(0, tables(event())._asdict()))
    outcomes = Counter({"sent": 3, "filtered: x": 2, "filtered: y": 1, "refused: z": 4, "refused: none": 0})
    day_counts = DayCounts(outcomes, stitched=5, left_out=Counter(a=1, b=2), notes=Counter(n=1))

    def add(metadata: dict[str, Any], asset_key: dg.AssetKey, partition_key: str) -> None:
        told[asset_key.path[-1]] = {name: getattr(value, "value", value) for name, value in metadata.items()}

    context: Any = SimpleNamespace(add_asset_metadata=add)
    _add_metadata(context, store, "2025-01-01", day_counts)
    events = told["events"]
    assert (events["extracted"], events["filtered"], events["refused"]) == (10, 3, 4)
    assert list(rows(events["outcomes"]).values()) == [5, 4, 3, 2, 1, 15]
    assert rows(told["customers"]["notes"]) == {"n": 1, "in all": 1}
    assert rows(told["rejects"]["reasons"]) == {"in all": told["rejects"]["dagster/partition_row_count"]}


def test_days_that_are_stitched_from_count_for_what_is_up_to_date(store: Store) -> None:
    learn(store, "2025-01-01")
    for day in ("2025-01-03", "2025-01-04"):
        store.identities.mark_derived(day, store.identities.inputs_fingerprint(day, store.options.stitch_anonymous_days))
    assert _later_days_up_to_date(store).passed
    learn(store, "2025-01-01", events=2)
    check = _later_days_up_to_date(store)
    assert (check.passed, check.metadata["days to derive again"].value) == (False, 1)
    assert "2025-01-03." in str(check.description)


def test_a_day_is_from_midnight_to_midnight_and_not_before_itself() -> None:
    assert day_bounds("2025-01-02") == (datetime(2025, 1, 2, tzinfo=UTC), datetime(2025, 1, 3, tzinfo=UTC))
    assert days_before("2025-01-03") == ["2025-01-01", "2025-01-02"]


def test_the_settings_of_the_days_are_those_of_partitions_backfills_and_the_schedules() -> None:
    settings = {**KEYS, "CIO_START_DATE": "2026-03-01", "CIO_DAYS_PER_RUN": "3", "CIO_LATE_DAYS": "1"}
    settings |= {"CIO_NIGHTLY_AT": "01:30", "CIO_HOURLY_CRON": "*/20 * * * *", "CIO_DELIVERED_BY": "08:00"}
    settings["CIO_TIME_ZONE"] = "Europe/Berlin"
    said = subprocess.run(
        [sys.executable, "-c", LOADED], env={**os.environ, **settings}, check=True, capture_output=True, text=True
    ).stdout
    assert json.loads(said.splitlines()[-1]) == [
        "2026-03-01",
        3,
        ["30 1 * * *", "Europe/Berlin"],
        ["*/20 * * * *", "Europe/Berlin"],
        ["0 8 * * *", "Europe/Berlin"],
        [None, ["2026-03-09", "2026-03-08", "2026-03-09"]],
        [None, ["2026-03-01", "2026-03-01", "2026-03-01"]],
        ["There is no partition yet: CIO_START_DATE is not over."],
    ]


def test_customerio_sync_has_every_materializable_asset_and_customerio_daily_runs_it() -> None:
    schedule = defs.resolve_schedule_def("customerio_daily")
    assert (schedule.job_name, schedule.cron_schedule, schedule.execution_timezone) == ("customerio_sync", "15 3 * * *", "UTC")
    selected = defs.resolve_job_def("customerio_sync").asset_layer.selected_asset_keys
    assert selected == defs.resolve_asset_graph().materializable_asset_keys
