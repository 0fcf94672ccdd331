"""A day from its events to its tables: R15, every event is accounted for; R18, what was known before the first day counts."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

import cio_pipeline.pipeline.derive
import cio_pipeline.pipeline.learn
from cio_pipeline.pipeline import by_customer
from cio_pipeline.pipeline.accounting import discrepancies
from cio_pipeline.pipeline.derive import EMAIL_IN_ANOTHER_CASE, derive_day, is_current
from cio_pipeline.pipeline.extract import extract_day
from cio_pipeline.pipeline.learn import learn_day
from cio_pipeline.posthog.source import EVENT_SCHEMA, EventStream
from cio_pipeline.rules.classify import classify
from cio_pipeline.rules.operations import derived_tables
from cio_pipeline.rules.options import Options
from cio_pipeline.state.identity_tables import HISTORY_PARTITION
from cio_pipeline.tables.files import StorageError
from cio_pipeline.tables.tables import NotMaterialized, Tables
from cio_pipeline.tables.versions import Version
from cio_pipeline.worker_pool import WorkerDied
from cio_pipeline_tests.days import Days
from cio_pipeline_tests.rules.streams import event, frame

SUNDAY, MONDAY = "2026-03-01", "2026-03-02"
NOT_IDENTIFIED = "filtered: not identified yet (R5)"


def derived(folder: Path, history: list[Any], sunday: list[Any], monday: list[Any], **options: Any) -> Days:
    product = Days(str(folder), Options(**options))
    table = frame(*history, *sunday, *monday)
    days = table["timestamp"].dt.strftime("%Y-%m-%d")
    for day in (HISTORY_PARTITION, SUNDAY, MONDAY):
        product.extract(day, table[days < SUNDAY if day == HISTORY_PARTITION else days == day], shards=2)
        product.learn(day)
    for day in (SUNDAY, MONDAY):
        product.derive(day)
    return product


def on(day: str, name: str, who: str = "u1", **properties: Any) -> dict[str, Any]:
    return event(name, who, at=f"{day}T10:00Z", **properties)


def test_r15_every_event_of_a_day_is_sent_filtered_or_refused(tmp_path: Path) -> None:
    monday = [
        on(MONDAY, "$identify", set_={"EMail": "u1@example.com"}),
        on(MONDAY, "order", recipient="x", set_={"email": "bad", "id": 7, "created_at": "soon"}),
        on(MONDAY, "order", "nobody"),
        on(MONDAY, "off the list"),
        on(MONDAY, "$create_alias"),
        on(MONDAY, "order", " "),
        on(MONDAY, "order", "x" * 151),
        on(MONDAY, "order", raw="[]"),
        on(MONDAY, "order", raw="{"),
        on(MONDAY, "order", d="x" * 100_000),
    ]
    options: Any = {"anonymous_users": "identified", "event_allowlist": ("$identify", "order", "$create_alias")}
    product = derived(tmp_path, [], [], monday, **options)
    day_counts = product.counts_by_day[MONDAY]
    assert +day_counts.outcomes == {
        "sent": 2,
        NOT_IDENTIFIED: 1,
        "filtered: not on the allowlist (R3)": 1,
        "filtered: $create_alias is never sent (R4)": 1,
        "refused: distinct_id is blank (R14)": 1,
        "refused: distinct_id is over 150 bytes (R14)": 1,
        "refused: properties are not a JSON object (R14)": 1,
        "refused: properties are not JSON (R14)": 1,
        "refused: data is over 100000 bytes (R14)": 1,
    }
    assert day_counts.left_out == {
        "is not a valid email (R2)": 1,
        "has a special meaning in Customer.io (R8)": 1,
        "is not a time (R9)": 1,
        "would change an email's recipient or sender (R13)": 1,
    }
    assert day_counts.notes == {EMAIL_IN_ANOTHER_CASE: 1}
    rejects = list(product.rows("rejects", MONDAY))
    refused = {f"refused: {row.reason}" for row in rejects if row.what == "event"}
    assert refused == {outcome for outcome in day_counts.outcomes if outcome.startswith("refused: ")}
    assert len(rejects) == 5 + 4
    assert all((row.uuid, row.timestamp.hour) != ("", 0) and row.name for row in rejects)
    assert len(product.events(MONDAY)) == 2


@pytest.mark.parametrize("day", [SUNDAY, MONDAY])
def test_r15_a_stitched_event_that_is_refused_is_counted_where_it_belongs(tmp_path: Path, day: str) -> None:
    named: dict[str, Any] = {"$anon_distinct_id": "anon"}
    identify = event("$identify", "u1", at=f"{MONDAY}T11:00Z", **named)
    visits = [on(day, "good", "anon"), on(day, "bad", "anon", raw="[]")]
    sunday, monday = (visits, []) if day == SUNDAY else ([], visits)
    product = derived(tmp_path, [], sunday, [*monday, identify], anonymous_users="identified", stitch_anonymous_days=7)
    day_counts = product.counts_by_day[MONDAY]
    refused = {"refused: properties are not a JSON object (R14)": 1}
    assert +day_counts.outcomes == ({"sent": 1} if day == SUNDAY else {"sent": 2, **refused})
    assert day_counts.stitched == (day == SUNDAY)
    assert +product.counts_by_day[SUNDAY].outcomes == ({NOT_IDENTIFIED: 2} if day == SUNDAY else {})
    assert [row.reason for row in product.rows("rejects", MONDAY)] == ["properties are not a JSON object (R14)"]
    assert len(product.events(MONDAY)) == 2


def test_r7_the_last_value_wins_over_all_distinct_ids_of_a_customer(tmp_path: Path) -> None:
    ids = [f"u{number}" for number in range(8)]
    monday = [
        event("order", who, at=f"{MONDAY}T{time}:00Z", set_={"email": "a@example.com", "plan": who})
        for who, time in zip(ids, (10, 13, 11, 17, 12, 14, 16, 15), strict=True)
    ]
    product = derived(tmp_path, [], [], monday, identify_by_email=True)
    [customer] = product.customers(MONDAY).values()
    assert (customer["plan"][0], customer["identifier"][0]) == ("u3", "u3")
    assert [found["key"] for found in product.events(MONDAY)] == ["email:a@example.com"] * 8


def test_r18_who_was_identified_before_the_first_day_is_known_on_it(tmp_path: Path) -> None:
    history = [
        on("2024-01-01", "$identify", "u1"),
        on("2024-01-01", "$set", "u2", set_={"email": "old@example.com"}),
    ]
    monday = [on(MONDAY, "order", who) for who in ("u1", "u2", "u3")]
    product = derived(tmp_path / "a", history, [], monday, anonymous_users="identified")
    assert [found["key"] for found in product.events(MONDAY)] == ["id:u1"]
    product = derived(tmp_path / "b", history, [], monday, anonymous_users="emails", identify_by_email=True)
    assert [found["key"] for found in product.events(MONDAY)] == ["email:old@example.com"]


def test_r18_the_days_know_better_than_the_history(tmp_path: Path) -> None:
    history = [on("2026-02-28", "$set", set_={"email": "old@example.com"})]
    sunday = [on(SUNDAY, "order", set_={"email": "new@example.com"})]
    product = derived(tmp_path, history, sunday, [on(MONDAY, "order")], identify_by_email=True)
    assert [found["key"] for day in (SUNDAY, MONDAY) for found in product.events(day)] == ["email:new@example.com"] * 2


def test_r1_what_a_day_says_counts_from_the_next_day_on_only(tmp_path: Path) -> None:
    product = derived(
        tmp_path, [], [on(SUNDAY, "order")], [on(MONDAY, "$identify"), on(MONDAY, "order")], anonymous_users="identified"
    )
    assert (product.outcomes(SUNDAY), product.outcomes(MONDAY)) == ({"filtered": 1}, {"sent": 2})


def test_r17_a_day_run_before_an_earlier_one_does_not_make_its_old_email_newer(tmp_path: Path) -> None:
    product = Days(str(tmp_path), Options())
    days = {
        SUNDAY: on(SUNDAY, "a", set_={"email": "old@example.com"}),
        MONDAY: on(MONDAY, "b", set_={"email": "new@example.com"}),
        "2026-03-03": on("2026-03-03", "c"),
    }
    for day in (SUNDAY, "2026-03-03", MONDAY):
        product.extract(day, frame(days[day]))
        product.learn(day)
        product.derive(day)
    emails = [product.customers(day)["id:u1"]["email"] for day in days]
    sunday, monday = (int(days[day]["timestamp"].timestamp()) for day in (SUNDAY, MONDAY))
    assert emails == [("old@example.com", sunday), ("new@example.com", monday), ("old@example.com", sunday)]


def test_a_part_of_a_day_is_not_stored_as_the_whole_day(tmp_path: Path) -> None:
    product = Days(str(tmp_path), Options())
    with pytest.raises(ValueError, match="`until` needs `into`"):
        derive_day(MONDAY, product.tables, product.identities, product.options, until=datetime(2026, 3, 2, 12, tzinfo=UTC))


def test_a_day_whose_derivation_was_cut_off_stays_out_of_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    product = derived(tmp_path, [], [on(SUNDAY, "a")], [on(MONDAY, "b")])
    product.extract(SUNDAY, frame(on(SUNDAY, "$identify")))
    product.learn(SUNDAY)
    assert product.identities.out_of_date(0) == [MONDAY]
    monkeypatch.setattr("cio_pipeline.pipeline.derive.derived_tables", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        product.derive(MONDAY)
    assert product.identities.out_of_date(0) == [MONDAY]


def test_a_day_is_out_of_date_where_an_earlier_one_was_learned_while_it_was_derived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = derived(tmp_path, [], [on(SUNDAY, "a")], [on(MONDAY, "b")])

    def learning_meanwhile(*arguments: Any) -> Any:
        product.extract(SUNDAY, frame(on(SUNDAY, "$identify")))
        product.learn(SUNDAY)
        return derived_tables(*arguments)

    monkeypatch.setattr("cio_pipeline.pipeline.derive.derived_tables", learning_meanwhile)
    product.options = Options(exclude_attributes=("x",))
    product.derive(MONDAY)
    assert product.identities.out_of_date(0) == [MONDAY]


def stitched(folder: Path) -> Days:
    named: dict[str, Any] = {"$anon_distinct_id": "anon"}
    identify = event("$identify", "u1", at=f"{MONDAY}T11:00Z", **named)
    return derived(folder, [], [on(SUNDAY, "visit", "anon")], [identify], anonymous_users="identified", stitch_anonymous_days=7)


def test_r16_a_day_that_is_stitched_from_and_whose_events_are_gone_is_named(tmp_path: Path) -> None:
    product = stitched(tmp_path)
    shutil.rmtree(tmp_path / "posthog_events" / SUNDAY)
    with pytest.raises(
        NotMaterialized, match=rf"^posthog_events of {SUNDAY} is not there any more, .+: extract these days again"
    ):
        product.derive(MONDAY)
    assert len(product.events(MONDAY)) == 2, "what was derived before stays"


def test_r16_events_that_are_gone_and_not_needed_hold_nothing_up(tmp_path: Path) -> None:
    product = derived(
        tmp_path,
        [],
        [on(SUNDAY, "visit", "anon")],
        [on(MONDAY, "$identify")],
        anonymous_users="identified",
        stitch_anonymous_days=7,
    )
    shutil.rmtree(tmp_path / "posthog_events" / SUNDAY)
    assert product.derive(MONDAY).outcomes["sent"] == 1


def test_an_empty_shard_is_no_missing_one_and_a_missing_table_no_empty_day(tmp_path: Path) -> None:
    product = derived(tmp_path, [], [], [on(MONDAY, "a")])
    assert product.derive(SUNDAY).outcomes.total() == 0
    shutil.rmtree(tmp_path / "posthog_events" / SUNDAY)
    for step in (product.derive, product.learn):
        with pytest.raises(NotMaterialized, match=f"posthog_events of {SUNDAY} is not there"):
            step(SUNDAY)


def test_a_temporary_folder_that_goes_while_a_day_is_derived_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = derived(tmp_path / "data", [], [], [on(MONDAY, "a")], identify_by_email=True)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))

    def reaped(*arguments: Any) -> Any:
        for folder in (tmp_path / "tmp").iterdir():
            shutil.rmtree(folder)
        return classify(*arguments)

    monkeypatch.setattr("cio_pipeline.pipeline.classification.classify", reaped)
    monkeypatch.setattr("cio_pipeline.pipeline.derive.code_hash", lambda: "other code")
    with pytest.raises(StorageError, match=r"run this again\.$"):
        product.derive(MONDAY)
    assert len(product.events(MONDAY)) == 1


def files(product: Days) -> dict[str, list[bytes]]:
    """What the shards of Monday's tables are made of, by table."""
    found = {}
    for table in ("customers", "events", "rejects"):
        version = product.tables.version(table, MONDAY)
        folder = product.tables.root / "derived" / MONDAY / version.name
        found[table] = [(folder / f"{table}-{shard:04d}.parquet").read_bytes() for shard in range(version.shards)]
    return found


@pytest.mark.parametrize(
    "options", [{}, {"identify_by_email": True}, {"anonymous_users": "identified", "stitch_anonymous_days": 1}]
)
def test_one_worker_and_many_make_the_same_tables(tmp_path: Path, options: dict[str, Any]) -> None:
    monday = [on(MONDAY, "visit", f"u{number}", set_={"email": f"e{number % 5}@example.com"}) for number in range(40)]
    monday += [on(MONDAY, "$identify", f"u{number}", **{"$anon_distinct_id": f"a{number}"}) for number in range(9)]
    monday += [on(MONDAY, "visit", f"u{number}", raw="[]") for number in range(9)]
    sunday = [on(SUNDAY, "visit", f"a{number}") for number in range(9)]
    product = Days(str(tmp_path), Options(**options))
    for day, events in ((SUNDAY, sunday), (MONDAY, monday)):
        product.extract(day, frame(*events), shards=5)
        product.learn(day)
    accounts, tables = [], []
    for workers in (1, 3):
        with pytest.MonkeyPatch.context() as code:
            code.setattr("cio_pipeline.pipeline.derive.code_hash", lambda workers=workers: f"for {workers}")
            accounts.append(derive_day(MONDAY, product.tables, product.identities, product.options, workers=workers))
        tables.append(files(product))
    assert (accounts[0], tables[0]) == (accounts[1], tables[1])
    assert len(tables[0]["events"]) == (5 if not options else 1)


class KillingTables(Tables):
    """A worker that reads the shard 3 is killed, as by a system that is out of memory."""

    def shard(self, table: str, partition: str, version: Version, shard: int, columns: list[str] | None = None) -> pa.Table:
        """As the tables give it, but to a worker."""
        if shard == 3 and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().shard(table, partition, version, shard, columns)


@pytest.mark.parametrize("options", [{}, {"identify_by_email": True}])
def test_a_worker_that_is_killed_leaves_the_tables_as_they_were_and_the_next_run_makes_them(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    product = derived(tmp_path, [], [], [on(MONDAY, "visit")], **options)
    before, day_counts = files(product), product.counts_by_day[MONDAY]
    product.extract(MONDAY, frame(*(on(MONDAY, "visit", f"u{number}") for number in range(60))), shards=6)
    product.learn(MONDAY)
    with pytest.raises(WorkerDied, match=r"^A worker process was ended from outside, .+: run this again; .+ CIO_WORKERS\.$"):
        derive_day(MONDAY, KillingTables(str(tmp_path)), product.identities, product.options, workers=2)
    assert files(product) == before
    assert len(list(tmp_path.glob(f"derived/{MONDAY}/*/"))) == 1
    assert discrepancies(MONDAY, day_counts, product.tables) != []
    again = derive_day(MONDAY, product.tables, product.identities, product.options, workers=2)
    assert discrepancies(MONDAY, again, product.tables) == []
    assert {event["key"] for event in product.events(MONDAY)} == {f"id:u{number}" for number in range(60)}


def test_what_a_day_is_learned_as_does_not_depend_on_its_shards_or_the_workers(tmp_path: Path) -> None:
    sunday = [on(SUNDAY, "$identify", f"u{number}", set_={"email": f"e{number % 5}@example.com"}) for number in range(40)]
    known = set()
    for shards, workers in ((1, 1), (5, 1), (5, 2)):
        product = Days(str(tmp_path / f"{shards}-{workers}"), Options())
        product.extract(SUNDAY, frame(*sunday), shards)
        counts = learn_day(SUNDAY, "setting", product.tables, product.identities, workers)
        known.add((product.identities.inputs_fingerprint(MONDAY, 0), *counts.items()))
    assert len(known) == 1


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was learned and built, as it happens."""
    done: list[str] = []
    for module, name in ((cio_pipeline.pipeline.derive, "derived_tables"), (cio_pipeline.pipeline.learn, "learn")):
        original = getattr(module, name)

        def noted(*arguments: Any, name: str = name, original: Any = original) -> Any:
            done.append(name)
            return original(*arguments)

        monkeypatch.setattr(module, name, noted)
    return done


def test_a_day_whose_events_are_as_they_were_is_neither_learned_nor_derived_again(tmp_path: Path, built: list[str]) -> None:
    events = frame(on(MONDAY, "order"), on(MONDAY, "order", " "), on(MONDAY, "order", set_={"id": 1, "EMail": "x"}))
    product = Days(str(tmp_path), Options())
    found = []
    for _ in range(2):
        product.extract(MONDAY, events)
        product.learn(MONDAY)
        found.append((product.derive(MONDAY), files(product)))
        assert built == ["learn", "derived_tables"]
    assert found[0] == found[1]
    assert product.identities.out_of_date(0) == []


@pytest.mark.parametrize("what", ["events", "earlier days", "options", "code", "a damaged table", "a table that is gone"])
def test_a_day_is_derived_again_where_anything_of_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: list[str], what: str
) -> None:
    product = derived(tmp_path, [], [on(SUNDAY, "order")], [on(MONDAY, "order")])
    before = files(product)
    del built[:]
    [path] = tmp_path.glob(f"derived/{MONDAY}/*/events-0000.parquet")
    if what == "events":
        product.extract(MONDAY, frame(on(MONDAY, "order"), on(MONDAY, "visit")), shards=2)
    elif what == "earlier days":
        product.extract(SUNDAY, frame(on(SUNDAY, "$identify")), shards=2)
        product.learn(SUNDAY)
        del built[:]
    elif what == "options":
        product.options = Options(event_allowlist=("order",))
    elif what == "code":
        monkeypatch.setattr("cio_pipeline.pipeline.derive.code_hash", lambda: "other code")
    elif what == "a damaged table":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    product.derive(MONDAY)
    assert built == ["derived_tables"] * 2
    assert what == "events" or files(product) == before


def test_r16_a_day_is_derived_again_where_events_that_it_may_stitch_have_changed(tmp_path: Path) -> None:
    product = stitched(tmp_path)
    product.extract(SUNDAY, frame(on(SUNDAY, "another visit", "anon")))
    product.learn(SUNDAY)
    product.derive(MONDAY)
    assert sorted(found["name"] for found in product.events(MONDAY)) == ["$identify", "another visit"]


def test_r6_distinct_ids_that_are_one_email_in_several_cases_are_one_customer(tmp_path: Path) -> None:
    monday = [on(MONDAY, "order", who, set_={who: 1}) for who in ("Łada@example.com", "ŁADA@EXAMPLE.com", "łada@example.com")]
    events = frame(*monday)
    table = pa.Table.from_pandas(events.assign(created_at=events["timestamp"]), EVENT_SCHEMA)
    product = Days(str(tmp_path), Options())
    stream = EventStream(3, iter([table]))
    now = datetime(2026, 3, 3, tzinfo=UTC)
    extract_day(product.tables, MONDAY, stream, start=datetime(2026, 3, 2, tzinfo=UTC), attributes="auto", now=now)
    product.derive(MONDAY)
    assert [row.key for row in product.rows("customers", MONDAY)] == ["email:łada@example.com"]


def test_tables_are_current_until_their_events_or_earlier_days_change(tmp_path: Path) -> None:
    product = Days(str(tmp_path), Options(identify_by_email=True))
    product.extract(MONDAY, frame(on(MONDAY, "order")))
    product.learn(MONDAY)

    def is_fresh(**options: Any) -> bool:
        return is_current(MONDAY, product.tables, product.identities, replace(product.options, **options))

    product.derive(MONDAY)
    assert is_fresh()
    product.extract(SUNDAY, frame(on(SUNDAY, "$identify", set_={"email": "u1@example.com"})))
    product.learn(SUNDAY)
    assert not is_fresh()
    assert is_fresh(identify_by_email=False), "then earlier days change nothing"
    product.derive(MONDAY)
    assert is_fresh()
    product.extract(MONDAY, frame(on(MONDAY, "paid")))
    assert not is_fresh()
    assert not is_fresh(identify_by_email=False)


def test_r16_a_day_that_is_extracted_again_while_it_is_derived_is_stitched_from_one_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = Days(str(tmp_path), Options(anonymous_users="profiles", stitch_anonymous_days=7))
    names_anon: dict[str, Any] = {"$anon_distinct_id": "anon"}
    identify = event("$identify", "u1", at=f"{MONDAY}T11:00Z", **names_anon)
    view, uuid = on(MONDAY, "view", "anon"), "019cadd9-8c00-7b1a-9c55-3f2f5a7d0e11"
    product.extract(MONDAY, frame({**view, "uuid": uuid}, identify))
    product.learn(MONDAY)
    windows = by_customer._merge_windows

    def extracted_meanwhile(*given: Any) -> pd.DataFrame:
        personless = on(MONDAY, "view", "anon", **{"$process_person_profile": False})
        product.extract(MONDAY, frame({**personless, "uuid": uuid}, identify))
        return windows(*given)

    monkeypatch.setattr(by_customer, "_merge_windows", extracted_meanwhile)
    counts = product.derive(MONDAY)
    sent = [row.ulid for row in product.rows("events", MONDAY)]
    assert (len(sent), len(set(sent)), counts.outcomes) == (2, 2, {"sent": 2})
