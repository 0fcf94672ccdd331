"""What a run from the command line says of its days, by its events: each day once, what did not go out, and the exit status."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from cio_pipeline.cli.summary import Summary
from cio_pipeline.defs.asset_keys import asset_key
from cio_pipeline.defs.pages.receipts import DELIVERED, OPEN_REFUSALS
from cio_pipeline.defs.pages.tables import table
from cio_pipeline.posthog.source import EVENT_SCHEMA
from cio_pipeline.tables.tables import Tables

DAY, NEXT_DAY = "2025-01-01", "2025-01-02"
BLANK, NOBODYS = "refused: distinct_id is blank (R14)", "refused: distinct_id is nobody's (R14)"
Summaries = Callable[..., Summary]


@pytest.fixture
def summary(tmp_path: Path) -> Summaries:
    """A summary under these settings."""

    def of(share: float = 0.01, allowlist: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> Summary:
        settings: Any = SimpleNamespace(
            refused_share=share, event_allowlist=allowlist, exclude_attributes=exclude, data_dir=str(tmp_path)
        )
        return Summary(settings)

    return of


def materialized(name: str, day: str, **metadata: Any) -> Any:
    data = SimpleNamespace(materialization=dg.AssetMaterialization(name, partition=day, metadata=metadata))
    return SimpleNamespace(event_type=dg.DagsterEventType.ASSET_MATERIALIZATION, event_specific_data=data)


def checked(asset: str, name: str, passed: bool, description: str | None = None, **metadata: Any) -> Any:
    data = dg.AssetCheckEvaluation(asset_key(asset), name, passed, metadata, description=description)
    return SimpleNamespace(event_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION, event_specific_data=data)


def derived(day: str, extracted: int, filtered: int = 0, **reasons: int) -> Any:
    refused = sum(count for name, count in reasons.items() if name.startswith("refused"))
    outcomes = table([{"what": name, "count": count} for name, count in reasons.items()])
    return materialized("events", day, extracted=extracted, filtered=filtered, refused=refused, outcomes=outcomes)


def delivered(day: str, refused: int = 0) -> Any:
    return materialized("customerio_delivery", day, **{DELIVERED: 1, OPEN_REFUSALS: refused})


def ended(summary: Summary, *events: Any) -> int:
    for one in events:
        summary.see(one)
    return summary.end()


def test_a_receipt_counts_once_though_dagster_leaves_it_twice_and_not_before_it_is_there(
    summary: Summaries, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = materialized("customerio_delivery", DAY)
    assert ended(summary(), derived(DAY, 5), begun, delivered(DAY, refused=3), delivered(DAY, refused=3)) == 1
    assert capsys.readouterr().err.startswith("Customer.io refused 3 items: ")


def test_what_customerio_refused_on_any_day_is_in_the_last_line_and_in_the_status(
    summary: Summaries, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(summary(), delivered(DAY, refused=2), delivered(NEXT_DAY, refused=0)) == 1
    assert capsys.readouterr().err.startswith("Customer.io refused 2 items: ")


def test_the_share_that_may_be_refused_is_a_days_and_not_the_runs(
    summary: Summaries, capsys: pytest.CaptureFixture[str]
) -> None:
    reasons = {BLANK: 2, NOBODYS: 1, "filtered: x": 3}
    assert ended(summary(0.25), derived(DAY, 10, **reasons), derived(NEXT_DAY, 990)) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(
        f"The rules refused 3 of 1,000 events, 0.3 % (CIO_REFUSED_SHARE allows 25 % of a day, {DAY} has 30 %):"
        " 2 because distinct_id is blank (R14), 1 because distinct_id is nobody's (R14)."
    )


def test_what_the_share_just_allows_is_said_and_is_no_failure(summary: Summaries, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(summary(0.25), derived(DAY, 4, **{BLANK: 1})) == 0
    said = capsys.readouterr()
    assert said.out.startswith("The rules refused 1 of 4 events, 25 % (CIO_REFUSED_SHARE allows 25 % of a day): 1 because ")
    assert said.err == ""


def test_the_reasons_of_a_day_that_is_derived_twice_count_once(summary: Summaries, capsys: pytest.CaptureFixture[str]) -> None:
    ended(
        summary(),
        derived(DAY, 10, **{BLANK: 2, NOBODYS: 1}),
        derived(NEXT_DAY, 10, **{BLANK: 1}),
        derived(DAY, 10, **{BLANK: 2}),
    )
    said = capsys.readouterr().err
    assert said.startswith("The rules refused 3 of 20 events, ")
    assert said.partition("): ")[2].startswith("3 because distinct_id is blank (R14).")


def test_of_many_days_with_too_many_refused_three_are_named(summary: Summaries, capsys: pytest.CaptureFixture[str]) -> None:
    ended(summary(), *(derived(f"2025-01-0{number}", 4, **{BLANK: 1}) for number in range(1, 6)))
    assert "2025-01-03 has 25 %, and 2 days more): " in capsys.readouterr().err


def test_each_failed_check_is_a_line_and_of_checks_of_all_days_the_last_run_counts(
    summary: Summaries, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        ended(
            summary(),
            checked("events", "every_event_accounted_for", True, "no more than this"),
            checked("posthog_events", "attributes_given", False, "First."),
            checked("posthog_events", "attributes_given", False, "Second."),
            checked("posthog_events", "attributes_given", False, "Second."),
            checked("identities", "later_days_up_to_date", False, "Derive them again."),
            checked("identities", "later_days_up_to_date", True),
            checked("customerio_delivery", "nothing_refused", False, refused=2),
            checked("customerio_delivery", "nothing_refused", False, refused=1),
            checked("rejects", "few_refused_by_the_rules", False, "A line of its own says so."),
            checked("customerio_delivery", "yesterday_delivered", False, "This is not of these days."),
            checked("customers", "earlier_days_learned", False, "Not known."),
        )
        == 0
    )
    assert capsys.readouterr().out.splitlines() == [
        "The check attributes_given of posthog_events failed: First. Second.",
        "The check nothing_refused of customerio_delivery failed: refused: 1",
        "The check earlier_days_learned of customers failed: Not known.",
    ]


def test_a_name_of_a_list_is_looked_for_on_all_days_and_in_the_persons_properties(
    summary: Summaries, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    days = {DAY: ("paid", '{"$set":{"plan":"pro"}}', None), NEXT_DAY: ("left", "{", '{"utm_source":"x"}')}
    for number, (day, (name, properties, person)) in enumerate(days.items()):
        row = {"event": name, "properties": properties, "person_properties": person, "distinct_id": "u1", "uuid": str(number)}
        at = pd.Timestamp(day, tz="UTC")
        events = pd.DataFrame([{**dict.fromkeys(EVENT_SCHEMA.names, at), **row}])
        with Tables(str(tmp_path)).replace(day, {"posthog_events": EVENT_SCHEMA}) as new:
            new.shards.append(new.writer.write(0, {"posthog_events": events}))
    found = summary(allowlist=("paid", "left", "payed"), exclude=("pl*", "utm_*", "plan?"))
    assert ended(found, derived(DAY, 1), derived(NEXT_DAY, 1)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "CIO_EVENT_ALLOWLIST: no event of these days is named 'payed'.",
        "CIO_EXCLUDE_ATTRIBUTES: no attribute of these days is named 'plan?'.",
    ]
