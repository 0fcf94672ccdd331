"""The extraction in Dagster: duplicates go, odd days are said, and the history is read again when it is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from cio_pipeline.definitions import defs
from cio_pipeline.defs import reading
from cio_pipeline.defs.asset_keys import asset_key
from cio_pipeline.defs.assets import extract
from cio_pipeline.defs.checks.extract import counts_agree, is_unusual
from cio_pipeline.defs.failures import RunNotStarted
from cio_pipeline.defs.partitions import RANGE_END, RANGE_START
from cio_pipeline.defs.resources import PostHogResource
from cio_pipeline.pipeline.events import KEPT_EVENTS
from cio_pipeline.pipeline.extract_shard import ExtractionCounts
from cio_pipeline.posthog.reading import WindowReader
from cio_pipeline.posthog.source import NotExtracted
from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.sandbox.processes import Sandbox
from cio_pipeline.settings.load import load_settings
from cio_pipeline.state.identities import Identities
from cio_pipeline.state.identity_tables import HISTORY_PARTITION
from cio_pipeline.tables.tables import Tables
from cio_pipeline_tests.receipts import rows

DAY = "2025-02-26"


def event(number: int, day: str = DAY, name: str = "order", **properties: Any) -> dict[str, Any]:
    return {
        "uuid": f"00000000-0000-4000-8000-{number:012d}",
        "event": name,
        "distinct_id": f"u{number}",
        "timestamp": f"{day}T10:00:00Z",
        "properties": properties,
        "person_properties": {"email": f"u{number}@example.com"},
    }


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[posthog.PostHog]:
    """A PostHog, and settings that name it; it is two days after the day."""
    with posthog.serve() as running:
        for name, value in Sandbox(running.url, "http://127.0.0.1:1").environment(tmp_path / "data", date(2025, 1, 1)).items():
            monkeypatch.setenv(name, value)
        at(monkeypatch, DAY, days=2)
        yield running


def at(monkeypatch: pytest.MonkeyPatch, day: str, days: int) -> None:
    """The time of the extraction."""
    now = datetime.fromisoformat(day).replace(tzinfo=UTC) + timedelta(days=days)
    monkeypatch.setattr(reading, "now", lambda: now)


def run(instance: dg.DagsterInstance, first: str = DAY, last: str = DAY, **config: Any) -> dg.ExecuteInProcessResult:
    """Extracts and learns the days, and the history; the checks of these go along."""
    assets = [asset for asset in (*(defs.assets or []), *(defs.asset_checks or [])) if isinstance(asset, dg.AssetsDefinition)]
    return dg.materialize(
        assets,
        selection=[asset_key(name) for name in ("posthog_events", "identity_history", "identities")],
        instance=instance,
        resources=defs.resources,
        tags={RANGE_START: first, RANGE_END: last},
        run_config={"ops": {"cio__identity_history": {"config": config}}},
    )


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    [made] = result.asset_materializations_for_node(f"cio__{asset}")
    return {name: value.value for name, value in made.metadata.items()}


def check(result: dg.ExecuteInProcessResult, name: str) -> dg.AssetCheckEvaluation:
    [found] = [one for one in result.get_asset_check_evaluations() if one.check_name == name]
    return found


def uuids(day: str = DAY) -> list[str]:
    tables = Tables(load_settings().data_dir)
    return sorted(str(uuid)[-2:] for shard in tables.read("posthog_events", day) for uuid in shard["uuid"])


def test_duplicates_are_removed_and_counted_by_reason(server: posthog.PostHog, instance: dg.DagsterInstance) -> None:
    later = {**event(2, n=2), "created_at": "2025-02-27T10:00:00Z"}
    server.add([event(1), event(1), event(1), event(2, n=1), later, event(3), event(3, name="visit")])
    found = metadata(run(instance), "posthog_events")
    assert uuids() == ["01", "02", "03", "03"]
    assert (found["dagster/partition_row_count"], found["duplicates"]) == (4, 3)
    assert rows(found["duplicates by reason"]) == {
        "duplicates: the same row again": 2,
        "duplicates: ingested again, the last one counts": 1,
    }


def test_the_history_is_read_once_and_again_when_it_is_asked_for(server: posthog.PostHog, instance: dg.DagsterInstance) -> None:
    server.add([event(1), event(2, "2024-06-01", "$identify")])
    first = metadata(run(instance), "identity_history")
    assert (first["dagster/row_count"], first["identified"], first["read by this run"]) == (1, 1, True)
    server.add([event(3, "2024-07-01", "$identify")])
    assert metadata(run(instance), "identity_history") == {**first, "read by this run": False}
    identities = Identities(load_settings().ledger_url)
    assert identities.unlearned([HISTORY_PARTITION], "CIO_ATTRIBUTES_FROM=auto before 2025-01-01") == [], (
        "an earlier start reads it again"
    )
    found = metadata(run(instance, again=True), "identity_history")
    assert (found["dagster/row_count"], found["identified"]) == (2, 2)


def test_the_history_is_read_again_under_another_setting_and_its_duplicates_are_counted(
    server: posthog.PostHog, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add([event(1, "2024-06-01", "$identify"), event(1, "2024-06-01", "$identify")])
    run(instance)
    monkeypatch.setenv("CIO_ATTRIBUTES_FROM", "person")
    found = metadata(run(instance), "identity_history")
    assert (found["dagster/row_count"], found["duplicates"]) == (1, 1)


def test_a_day_says_what_it_took_to_read_it_and_what_was_learned_from_it(
    server: posthog.PostHog, instance: dg.DagsterInstance
) -> None:
    server.add([event(1), event(2, name="$identify")])
    result = run(instance)
    assert rows(metadata(result, "posthog_events")["what the reading took"])["queries"] > 0
    learned = metadata(result, "identities")
    assert (learned["dagster/partition_row_count"], learned["people"], learned["identified"]) == (1, 1, 1)


def test_a_history_that_is_read_again_keeps_the_emails_that_posthog_has_dropped(
    server: posthog.PostHog, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add([{**event(1, "2024-12-31", "$set", **{"$set": {"email": "a@example.com"}}), "person_properties": {}}])
    assert metadata(run(instance), "identity_history")["emails"] == 1
    server.project.drop_old_sets(datetime(2026, 1, 1, tzinfo=UTC))
    at(monkeypatch, DAY, days=200)
    assert metadata(run(instance, again=True), "identity_history")["emails"] == 1


def test_from_a_history_older_than_59_days_the_email_of_the_person_is_learned(
    server: posthog.PostHog, instance: dg.DagsterInstance
) -> None:
    server.add([event(1, "2024-06-01", "$identify"), event(2, "1970-01-01", "$identify")])
    assert metadata(run(instance), "identity_history")["emails"] == 2


@pytest.mark.parametrize(("events", "passes"), [(3, False), (9, True)])
def test_a_day_without_events_or_far_below_its_weekday_is_said(
    server: posthog.PostHog, instance: dg.DagsterInstance, events: int, passes: bool
) -> None:
    weeks = ["2025-02-05", "2025-02-12", "2025-02-19"]
    numbers = iter(range(200))
    server.add(event(next(numbers), day) for day, count in zip(weeks, (10, 12, 40), strict=True) for _ in range(count))
    server.add(event(next(numbers), DAY) for _ in range(events))
    for day in weeks:
        run(instance, day, day)
    found = check(run(instance), "as_many_events_as_usual")
    assert (found.passed, found.severity) == (passes, dg.AssetCheckSeverity.WARN)
    assert found.metadata["days far from usual"].value == (0 if passes else 1)
    assert passes or (found.description or "").startswith(f"{DAY} has {events} events, 12 are usual")


def test_an_empty_first_day_is_said(server: posthog.PostHog, instance: dg.DagsterInstance) -> None:
    found = check(run(instance), "as_many_events_as_usual")
    assert not found.passed
    assert (found.description or "").startswith(f"{DAY} has 0 events")


@pytest.mark.parametrize("days", [2, 90])
@pytest.mark.parametrize("mode", ["auto", "set", "person"])
def test_an_old_day_whose_events_should_carry_attributes_and_carry_none_is_said(
    server: posthog.PostHog, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, mode: str, days: int
) -> None:
    monkeypatch.setenv("CIO_ATTRIBUTES_FROM", mode)
    server.add([event(1), event(2, "2025-02-25"), event(3, name="$identify")])
    at(monkeypatch, DAY, days)
    found = check(run(instance, "2025-02-25"), "attributes_given")
    passes = days == 2 or mode != "set"
    assert (found.passed, found.severity) == (passes, dg.AssetCheckSeverity.WARN)
    assert passes or (found.description or "").startswith(f"{DAY}: PostHog keeps $set for 60 days, and no $identify")
    assert found.metadata["days that lack attributes"].value == int(not passes)


@pytest.mark.parametrize("kept", [{}, {"$set": {"plan": "pro"}}], ids=["all", "all-but-one"])
def test_an_old_day_whose_attributes_are_lost_is_said_if_it_has_no_identify_or_another_event_has_attributes(
    server: posthog.PostHog, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, kept: dict[str, Any]
) -> None:
    """The events list has no person properties."""
    monkeypatch.setenv("CIO_EVENT_SOURCE", "events_api")
    server.add([event(1), event(2), {**event(3, **kept), "timestamp": f"{DAY}T11:00:00Z"}])
    at(monkeypatch, DAY, days=60)
    found, lost = check(run(instance), "attributes_given"), 2 if kept else 3
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert (found.description or "").startswith(f"{DAY}: {lost} events should use their person's properties (R20), but")
    assert found.metadata["days that lack attributes"].value == 1
    assert found.metadata["events that lack their person's properties"].value == lost


def test_a_young_day_whose_only_identify_sets_nothing_is_as_it_should_be(
    server: posthog.PostHog, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add([{**event(3, name="$identify"), "person_properties": {}}])
    assert check(run(instance), "attributes_given").passed


@pytest.mark.parametrize(
    ("events", "usual", "odd"),
    [(0, 0, True), (1, 0, False), (5, 11, True), (6, 12, False), (99, 1, False), (100, 20, False), (101, 20, True)],
)
def test_no_events_half_of_the_usual_or_five_times_as_many_are_unusual(events: int, usual: float, odd: bool) -> None:
    assert is_unusual(events, usual) == odd


def test_as_many_events_as_posthog_counted_are_read_or_it_is_said(
    server: posthog.PostHog, instance: dg.DagsterInstance
) -> None:
    server.add([event(1), event(1), event(2)])
    found = check(run(instance), "counts_agree_with_posthog")
    assert found.passed
    assert {name: value.value for name, value in found.metadata.items()} == {
        "events counted by PostHog": 3,
        "events read": 3,
        "events kept": 2,
        "duplicates": 1,
        "days short of events": 0,
        "days without a count": 0,
    }


def test_fewer_events_than_posthog_counted_are_said(
    server: posthog.PostHog, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is deleted between the count and the reading."""
    counts = WindowReader.counts
    gone = iter([1])

    def one_more(*arguments: Any) -> Counter[str]:
        return counts(*arguments) + Counter(order=next(gone, 0))

    monkeypatch.setattr(WindowReader, "counts", one_more)
    server.add([event(1), event(2)])
    found = check(run(instance), "counts_agree_with_posthog")
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert (found.description or "").startswith(
        f"Fewer events were read than PostHog has: of {DAY}, PostHog counted 3 events and returned 2. "
    )
    without_counts = counts_agree({DAY: ExtractionCounts(rows_read=1)}, {})
    assert (without_counts.passed, without_counts.metadata["days without a count"].value) == (True, 1)


def test_fewer_events_than_posthog_counted_are_said_even_if_the_day_was_read_twice(
    server: posthog.PostHog, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostHog counts three events until they have been read twice, and returns two each time."""
    counts = WindowReader.counts
    missing = iter([1, 1])

    def one_more_twice(*arguments: Any) -> Counter[str]:
        return counts(*arguments) + Counter(order=next(missing, 0))

    monkeypatch.setattr(WindowReader, "counts", one_more_twice)
    server.add([event(1), event(2)])
    found = check(run(instance), "counts_agree_with_posthog")
    assert not found.passed
    assert f"of {DAY}, PostHog counted 3 events and returned 2. " in (found.description or "")
    assert {name: value.value for name, value in found.metadata.items()} == {
        "events counted by PostHog": 3,
        "events read": 2,
        "events kept": 2,
        "duplicates": 2,
        "days short of events": 1,
        "days without a count": 0,
    }


@pytest.mark.parametrize("by_email", ["No", "Yes"])
def test_an_email_of_two_people_is_said_where_ids_are_the_customers(
    server: posthog.PostHog, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, by_email: str
) -> None:
    monkeypatch.setenv("CIO_IDENTIFY_BY_EMAIL", by_email)
    shared: dict[str, Any] = {"$set": {"email": "team@example.com"}}
    server.add([event(number, name="$identify", **shared) for number in (1, 2)])
    found = check(run(instance), "emails_not_shared")
    assert (found.passed, found.severity) == (by_email == "Yes", dg.AssetCheckSeverity.WARN)
    assert found.metadata["ids that share one"].value == 2
    assert "team@" not in str(found)
    if by_email == "No":
        assert (found.description or "").startswith("1 email is shared by 2 distinct_ids: see the table. ")


def test_an_old_day_takes_the_persons_properties_and_keeps_a_set_it_had(
    server: posthog.PostHog, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add([{**event(1), "properties": {"$set": {"plan": "pro"}}}])
    run(instance)
    server.project.drop_old_sets(datetime(2026, 1, 1, tzinfo=UTC))
    server.add([event(2, "2025-02-25")])
    at(monkeypatch, DAY, days=90)
    run(instance, "2025-02-25")
    tables = Tables(load_settings().data_dir)
    [kept], [taken] = tables.read("posthog_events", DAY), tables.read("posthog_events", "2025-02-25")
    assert list(kept.columns) == KEPT_EVENTS.names
    assert kept["properties"].tolist() == ['{"$set": {"plan": "pro"}}']
    assert kept["person_properties"].isna().all()
    assert taken["person_properties"].tolist() == ['{"email":"u2@example.com"}']


def test_a_key_that_posthog_does_not_take_ends_a_run_before_its_first_step(
    server: posthog.PostHog, monkeypatch: pytest.MonkeyPatch
) -> None:
    PostHogResource().create_resource(dg.build_init_resource_context())
    monkeypatch.setenv("POSTHOG_PERSONAL_API_KEY", "phx_another")
    with pytest.raises(RunNotStarted, match="POSTHOG_PERSONAL_API_KEY"):
        PostHogResource().create_resource(dg.build_init_resource_context())


DAYS = ["2025-02-22", "2025-02-23", "2025-02-24", "2025-02-25", DAY]


def failing_on(monkeypatch: pytest.MonkeyPatch, *failing: str) -> list[str]:
    """These days cannot be read; gives the list of those that were tried."""
    read_day, tried = reading.read_day, list[str]()

    def read(day: str, *given: Any) -> Any:
        tried.append(day)
        if day in failing:
            raise NotExtracted("PostHog gave 1 of 2 events.")
        return read_day(day, *given)

    monkeypatch.setattr(extract, "read_day", read)
    return tried


def failure_of(instance: dg.DagsterInstance, first: str, last: str) -> str:
    with pytest.raises(dg.Failure) as failure:
        run(instance, first, last)
    return str(failure.value.description)


def test_a_day_that_cannot_be_read_is_named_and_the_run_extracts_the_others(
    server: posthog.PostHog, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.project.add([event(1, DAYS[0]), event(2)])
    failing_on(monkeypatch, DAYS[1])
    assert failure_of(instance, DAYS[0], DAY) == (
        f"1 of the run's days could not be extracted. {DAYS[1]}: PostHog gave 1 of 2 events. 4 others are extracted."
    )
    assert instance.get_materialized_partitions(asset_key("posthog_events")) == {DAYS[0], *DAYS[2:]}
    [made] = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key("posthog_events"), asset_partitions=[DAY]), limit=9
    ).records
    assert made.asset_materialization is not None
    assert made.asset_materialization.metadata["dagster/partition_row_count"].value == 1


def test_after_three_days_in_a_row_that_cannot_be_read_the_others_are_not_tried(
    server: posthog.PostHog, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = failing_on(monkeypatch, *DAYS[:3])
    assert f"the days from {DAYS[3]} on were not tried." in failure_of(instance, DAYS[0], DAY)
    assert tried == DAYS[:3]
    assert failure_of(instance, DAYS[0], DAYS[0]) == "PostHog gave 1 of 2 events."
