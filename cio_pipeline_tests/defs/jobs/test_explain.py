"""What happened to a person: from the command line as it is, from Dagster's UI masked."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.cli.commands import main
from cio_pipeline.definitions import defs
from cio_pipeline.defs.assets.derive import customers_events_rejects
from cio_pipeline.defs.assets.extract import identities, posthog_events
from cio_pipeline.defs.jobs.explain import MASK, explained_person, masked_name
from cio_pipeline_tests.defs.assets.test_deliver import refusing
from cio_pipeline_tests.defs.jobs.test_dry_run import rows
from cio_pipeline_tests.defs.test_days_of_a_run import DAYS, Start, event, execute, refusing_upserts
from cio_pipeline_tests.defs.test_days_of_a_run import start as start

FIRST, SECOND, THIRD = DAYS
SETTINGS = {"CIO_ANONYMOUS_USERS": "identified", "CIO_STITCH_ANONYMOUS_DAYS": "5", "CIO_EXCLUDE_ATTRIBUTES": "left"}
EVENTS = [
    event(1, "looked", "anon-000017", f"{FIRST}T10:00:00Z"),
    event(2, "looked", "user-000017", f"{FIRST}T11:00:00Z"),
    event(3, "$identify", "user-000017", f"{SECOND}T10:00:00Z", **{"$anon_distinct_id": "anon-000017"}),
    event(4, "bought", "user-000017", f"{SECOND}T11:00:00Z", **{"$set": {"plan": "secret", "email": "user17@secret.example"}}),
    event(5, "$create_alias", "user-000017", f"{SECOND}T12:00:00Z"),
    event(6, " ", "user-000017", f"{SECOND}T13:00:00Z"),
    event(7, "paid", "user-000017", f"{THIRD}T10:00:00Z", **{"$set": {"plan": "top", "id": "x"}}),
    event(8, "paid", "somebody-else", f"{THIRD}T10:00:00Z", **{"$set": {"plan": "other"}}),
]
OUTCOMES = [
    ("looked", "sent", f"stitched, and sent with {SECOND} (R16)", "id:user-000017", "yes"),
    ("looked", "filtered", "not identified yet (R5)", "", ""),
    ("$identify", "sent", "", "id:user-000017", "yes"),
    ("bought", "sent", "", "id:user-000017", "yes"),
    ("$create_alias", "filtered", "$create_alias is never sent (R4)", "", ""),
    (" ", "refused", "name is blank (R14)", "", ""),
    ("paid", "sent", "", "id:user-000017", "refused: required name"),
]


def ask(instance: dg.DagsterInstance, who: str, *days: str) -> list[dict[str, Any]]:
    """Runs the job; gives what each observation of the asset says."""
    result = defs.resolve_job_def("explain_person").execute_in_process(
        instance=instance, run_config={"person": who, "from": days[0], "to": days[-1]}
    )
    seen = [one.asset_observation_data.asset_observation for one in result.all_events if one.is_asset_observation]
    assert {one.asset_key for one in seen} == {explained_person.key}
    return [{name: value.value for name, value in one.metadata.items()} for one in seen]


@pytest.fixture
def delivered(start: Start, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    """All days are delivered, but Customer.io refuses one event."""
    workspace = start(EVENTS, **SETTINGS)
    with monkeypatch.context() as broken:
        refusing(workspace, broken, "paid")
        execute(instance, DAYS)


def test_the_job_tells_what_became_of_each_event_and_attribute_masked(delivered: None, instance: dg.DagsterInstance) -> None:
    [told] = ask(instance, "us***017", *DAYS)
    assert told["ids and emails"] == "an***017, us***017, u***@s***.example"
    seen = [(row["event"], row["outcome"], row["reason"], row["acknowledged"]) for row in rows(told["events"])]
    assert seen == [(name.strip(), outcome, reason, acknowledged) for name, outcome, reason, _, acknowledged in OUTCOMES]
    assert {row["key"] for row in rows(told["events"])} == {"", "id us***017"}
    attributes = {row["attribute"]: row for row in rows(told["attributes"])}
    assert {name: (row["value"], row["acknowledged"]) for name, row in attributes.items()} == {
        "email": ("text of 21 characters", "yes"),
        "identifier": ("text of 11 characters", "yes"),
        "plan": ("text of 3 characters", "yes"),
    }
    assert attributes["email"]["set at"] == f"{SECOND} 11:00:00"
    assert [(row["what"], row["name"]) for row in rows(told["left out"])] == [("attribute", "id")]


def test_the_counts_of_all_outcomes_sum_to_the_events_found(delivered: None, instance: dg.DagsterInstance) -> None:
    [told] = ask(instance, "us***017", *DAYS)
    counts = {name.removeprefix("events "): count for name, count in told.items() if name.startswith("events ")}
    assert counts.pop("found") == sum(counts.values())
    assert counts == {"sent": 4, "filtered": 2, "suppressed": 0, "refused": 1, "not derived yet": 0}


def test_nothing_that_dagster_keeps_tells_whom_or_what(delivered: None, instance: dg.DagsterInstance) -> None:
    before = len(instance.get_runs())
    for plain in ("user-000017", "user17@secret.example", "us*017", "user-***017", "", "user***17@secret.example"):
        with pytest.raises(dg.DagsterInvalidConfigError, match="Nothing was run or stored"):
            ask(instance, plain, *DAYS)
    assert len(instance.get_runs()) == before
    ask(instance, "us***017", *DAYS)
    ask(instance, "email u***@s***.example", *DAYS)
    ask(instance, masked_name("user17@SECRET.example").sha256, *DAYS)
    for run in instance.get_runs()[: len(instance.get_runs()) - before]:
        kept = str([run, run.run_config, *instance.all_logs(run.run_id)])
        assert "user-000017" not in kept
        assert "anon-000017" not in kept
        assert "secret" not in kept


def test_a_refused_launch_tells_how_the_person_may_be_named(instance: dg.DagsterInstance) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError) as refused:
        ask(instance, "user-000017", *DAYS)
    assert "us***017" in str(refused.value)
    assert masked_name("user-000017").sha256 in str(refused.value)
    assert "user-000017" not in str(refused.value)


def test_all_who_look_alike_are_explained_and_of_nobody_it_is_said(delivered: None, instance: dg.DagsterInstance) -> None:
    assert [told["person"] for told in ask(instance, "som***lse", *DAYS)] == ["1 of 1 who look like som***lse"]
    with pytest.raises(dg.Failure) as nobody:
        ask(instance, "no***ody", *DAYS)
    assert str(nobody.value.description).startswith("Nobody matches no***ody")


def test_the_command_prints_it_as_it_is(delivered: None, capsys: pytest.CaptureFixture[str]) -> None:
    for who in ("user-000017", "USER17@secret.example", "anon-000017"):
        capsys.readouterr()
        assert main(["explain", who, "--from", FIRST, "--to", THIRD]) == 0
        said = capsys.readouterr().out.splitlines()
        assert said[0] == f"{who}, {FIRST} to {THIRD} (3 days): anon-000017, user-000017, user17@secret.example"
        lines = ["  ".join(line.split()) for line in said[3 : said.index("Attributes:")]]
        for line, outcome in zip(lines, OUTCOMES, strict=True):
            assert all("  ".join(part.split()) in line for part in outcome), line
        assert [line.split()[1:3] for line in said if "plan" in line] == [["plan", '"top"']]


def test_a_long_integer_is_explained_as_a_number(start: Start, instance: dg.DagsterInstance) -> None:
    start([event(1, "joined", "user-000017", f"{FIRST}T10:00:00Z", **{"$set": {"discord": 1234567890123456789}})])
    execute(instance, [FIRST])
    [told] = ask(instance, "us***017", FIRST)
    assert [row["value"] for row in rows(told["attributes"]) if row["attribute"] == "discord"] == ["a number"]


def test_suppressed_late_and_unextracted_events_are_told(
    start: Start, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    start(EVENTS)
    (tmp_path / "list").write_text("user17@secret.example\n")
    monkeypatch.setenv("CIO_SUPPRESSED_FILE", str(tmp_path / "list"))
    execute(instance, DAYS[:2])
    [told] = ask(instance, "us***017", *DAYS)
    assert {row["reason"] for row in rows(told["events"]) if row["outcome"] == "suppressed"} == {
        "CIO_SUPPRESSED_FILE names this person (R21)"
    }
    assert told["events sent"] == 0
    assert {row["acknowledged"] for row in rows(told["attributes"])} == {"CIO_SUPPRESSED_FILE names this person (R21)"}
    defs.resolve_job_def("customerio_sync").execute_in_process(
        instance=instance, partition_key=THIRD, asset_selection=[posthog_events.key, identities.key]
    )
    [told] = ask(instance, "us***017", THIRD)
    assert [row["outcome"] for row in rows(told["events"])] == ["not derived yet"]


def test_what_was_refused_of_one_day_is_not_said_of_the_next(
    start: Start, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = {FIRST: "free", SECOND: "pro"}
    visits = enumerate(plans.items(), 1)
    workspace = start([event(n, "v", "jane", f"{day}T10:00:00Z", **{"$set": {"plan": plan}}) for n, (day, plan) in visits])
    with monkeypatch.context() as broken:
        refusing_upserts(workspace, broken)
        execute(instance, [FIRST])
    defs.resolve_job_def("customerio_sync").execute_in_process(
        instance=instance,
        partition_key=SECOND,
        asset_selection=[posthog_events.key, identities.key, *customers_events_rejects.keys],
    )
    for day, acknowledged in ((FIRST, "refused: invalid action"), (SECOND, "not yet")):
        [told] = ask(instance, masked_name("jane").masked, day)
        assert {row["acknowledged"] for row in rows(told["attributes"])} == {acknowledged}
    [told] = ask(instance, masked_name("jane").masked, FIRST, SECOND)
    assert {row["acknowledged"] for row in rows(told["attributes"])} == {"not yet"}


def test_the_command_tells_how_the_job_takes_a_person(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    start(EVENTS)
    assert main(["explain", "user-000017", "--hash"]) == 0
    told = masked_name("user-000017")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [told.masked, told.sha256]
    assert main(["explain", "nobody"]) == 0
    assert "The tables of these days have no event of theirs" in capsys.readouterr().out


@given(st.text("abc-019ä ", min_size=1, max_size=40))
def test_the_job_takes_each_id_as_it_is_masked_and_a_mask_hides_half_of_it(distinct_id: str) -> None:
    masked = masked_name(distinct_id).masked
    assert MASK.fullmatch(masked)
    assert len(masked) - len("***") <= min(6, len(distinct_id) // 2)
