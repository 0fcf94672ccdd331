"""R1 over days: what was learned from earlier days is found, in whatever order it was learned."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cio_pipeline.rules.stitching import MERGE_COLUMNS
from cio_pipeline.state.identities import Identities
from cio_pipeline.state.identity_tables import HISTORY_PARTITION
from cio_pipeline.state.learned import Learned
from cio_pipeline.tables.files import StorageError

NOBODY_NAMED = pd.DataFrame(columns=MERGE_COLUMNS).astype({"timestamp": "datetime64[us, UTC]"})


def facts(*rows: tuple[str, bool, str | None]) -> pd.DataFrame:
    frame = pd.DataFrame([(*row, 1) for row in rows], columns=["distinct_id", "identified", "email", "email_set_at"])
    return frame.astype({"identified": bool})


def learned(*rows: tuple[str, bool, str | None]) -> list[Learned]:
    return [Learned.of(facts(*rows), NOBODY_NAMED, {(email.lower(), who) for who, _, email in rows if email})]


def keep(identities: Identities, day: str, facts: list[Learned], setting: str = "set", events: int = 1) -> None:
    identities.replace(day, setting, events, facts)


def before(identities: Identities, day: str, *distinct_ids: str) -> dict[str, tuple[bool, str | None]]:
    """What is known of each of the distinct_ids."""
    rows: Any = identities.known_before(day, list(distinct_ids)).itertuples()
    known = {row.distinct_id: (row.identified, row.email) for row in rows}
    assert all(known.values())
    return dict.fromkeys(distinct_ids, (False, None)) | known


def derive(identities: Identities, day: str, stitched_days: int) -> None:
    identities.mark_derived(day, identities.inputs_fingerprint(day, stitched_days))


@pytest.fixture
def identities(database_url: str) -> Identities:
    return Identities(database_url)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_r1_the_last_earlier_day_with_an_email_counts(identities: Identities, order: tuple[int, ...]) -> None:
    days = [
        ("2026-03-01", learned(("u1", False, "one@example.com"))),
        ("2026-03-02", learned(("u1", True, None), ("u2", False, "two@example.com"))),
        ("2026-03-03", learned(("u1", False, "three@example.com"))),
    ]
    for number in order:
        keep(identities, *days[number])
    assert before(identities, "2026-03-01", "u1") == {"u1": (False, None)}
    assert before(identities, "2026-03-02", "u1") == {"u1": (False, "one@example.com")}
    assert before(identities, "2026-03-03", "u1", "u2", "u3") == {
        "u1": (True, "one@example.com"),
        "u2": (False, "two@example.com"),
        "u3": (False, None),
    }
    assert before(identities, "2026-03-04", "u1") == {"u1": (True, "three@example.com")}


def test_r1_a_day_that_is_learned_again_replaces_what_was_learned_from_it(identities: Identities) -> None:
    keep(identities, "2026-03-01", learned(("u1", True, "one@example.com")))
    keep(identities, "2026-03-01", learned(("u2", True, None)))
    assert before(identities, "2026-03-02", "u1", "u2") == {"u1": (False, None), "u2": (True, None)}


def test_days_that_were_never_learned_or_under_another_setting_are_named(identities: Identities) -> None:
    keep(identities, "2026-03-02", learned())
    keep(identities, "2026-03-03", learned(), setting="person")
    assert identities.unlearned(["2026-03-01", "2026-03-02", "2026-03-03"], "set") == ["2026-03-01", "2026-03-03"]


def test_r18_the_history_comes_before_every_day(identities: Identities) -> None:
    keep(identities, HISTORY_PARTITION, learned(("u1", True, "old@example.com")))
    keep(identities, "2026-03-01", learned(("u1", False, "new@example.com")))
    assert before(identities, "2026-03-01", "u1") == {"u1": (True, "old@example.com")}
    assert before(identities, "2026-03-02", "u1") == {"u1": (True, "new@example.com")}


def test_a_day_derived_before_an_earlier_one_was_learned_is_out_of_date(identities: Identities) -> None:
    keep(identities, "2026-03-02", learned(("u1", True, None)))
    derive(identities, "2026-03-02", 0)
    derive(identities, "2026-03-03", 0)
    assert identities.out_of_date(0) == []
    keep(identities, "2026-03-01", learned())
    assert identities.out_of_date(0) == ["2026-03-02", "2026-03-03"]
    derive(identities, "2026-03-02", 0)
    assert identities.out_of_date(0) == ["2026-03-03"]


def test_a_day_learned_again_to_the_same_end_leaves_later_days_up_to_date(identities: Identities) -> None:
    keep(identities, "2026-03-01", learned(("u1", True, None)))
    derive(identities, "2026-03-02", 0)
    keep(identities, "2026-03-01", learned(("u1", True, None)), events=2)
    assert identities.out_of_date(0) == []
    keep(identities, "2026-03-01", learned(("u2", True, None)))
    assert identities.out_of_date(0) == ["2026-03-02"]


def test_r16_more_events_of_a_day_that_is_stitched_from_count_too(identities: Identities) -> None:
    keep(identities, "2026-03-01", learned())
    for day in ("2026-03-02", "2026-03-03"):
        derive(identities, day, 1)
    keep(identities, "2026-03-01", learned(), events=2)
    assert identities.out_of_date(1) == ["2026-03-02"]


def test_r16_merges_of_the_days_before_are_found(identities: Identities) -> None:
    at = pd.Timestamp("2026-03-01T10:00:00.000001Z")
    named = pd.DataFrame([["a1", "u1", at, "x"], ["a2", "u2", at, "y"]], columns=MERGE_COLUMNS)
    identities.replace("2026-03-01", "set", 2, [Learned.of(facts(), named)])
    found = identities.merges_between("2026-03-01", "2026-03-02", ["a1", "a3"])
    assert found.to_numpy().tolist() == [["a1", "u1", at, "x"]]
    assert identities.merges_between("2026-03-01", "2026-03-01", ["a1"]).empty
    assert identities.merges_between("2026-03-02", "2026-03-03", ["a1"]).empty


def test_r14_what_is_refused_blocks_no_look_up_and_is_in_no_index(identities: Identities) -> None:
    """PostgreSQL takes no NUL, and no more than 2,704 bytes in an index."""
    random = np.random.default_rng(1).integers(33, 127, 9_000, dtype=np.uint8).tobytes().decode()
    odd = ["", " ", "nul\0", random[:5_600], "ü" * 2_800]
    assert before(identities, "2026-03-02", *odd) == dict.fromkeys(odd, (False, None))
    assert identities.merges_between("2026-03-01", "2026-03-02", odd).empty
    at = pd.Timestamp("2026-03-01T10:00Z")
    for uuid in (random[:45], random, "nul\0", ""):
        named = pd.DataFrame([["a1", "u1", at, uuid], ["a1", "u2", at, uuid]], columns=MERGE_COLUMNS)
        identities.replace("2026-03-01", "set", 2, [Learned.of(facts(), named)])
        found = identities.merges_between("2026-03-01", "2026-03-02", ["a1"])
        assert found.to_numpy().tolist() == [["a1", "u1", at, uuid], ["a1", "u2", at, uuid]]


def test_more_people_than_one_question_holds_are_each_found_once(
    identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cio_pipeline.state.identities.IDS_PER_QUERY", 3)
    monkeypatch.setattr("cio_pipeline.state.learned.BATCH_ROWS", 3)
    monkeypatch.setattr("cio_pipeline.state.learned.SORTED_BATCHES", 2)
    ids = [f"u{number}" for number in range(10)]
    keep(identities, "2026-03-01", [*learned(*((who, True, f"{who}@x.io") for who in ids[:4])), *learned(("u9", True, None))])
    assert identities.known_before("2026-03-02", [*ids, *ids])["distinct_id"].tolist() == [*ids[:4], "u9"]
    assert before(identities, "2026-03-02", "u3", "u4", "u9") == {
        "u3": (True, "u3@x.io"),
        "u4": (False, None),
        "u9": (True, None),
    }


def test_all_is_read_before_anything_is_written_and_what_fails_leaves_what_was_known(
    identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cio_pipeline.state.database.BUSY_SECONDS", 1)
    keep(identities, "2026-03-01", learned(("u1", True, None)))

    def slowly() -> Iterator[Learned]:
        yield learned(("u2", True, None))[0]
        keep(identities, "2026-03-05", learned())
        assert before(identities, "2026-03-02", "u1", "u2") == {"u1": (True, None), "u2": (False, None)}
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        identities.replace("2026-03-01", "set", 1, slowly())
    assert before(identities, "2026-03-02", "u1", "u2") == {"u1": (True, None), "u2": (False, None)}
    assert identities.unlearned(["2026-03-05"]) == []


def test_one_day_is_learned_at_a_time(identities: Identities) -> None:
    with ThreadPoolExecutor(1) as thread:
        with identities._writing():
            keeping = thread.submit(keep, identities, "2026-03-01", learned())
            assert wait([keeping], timeout=0.5).not_done
        keeping.result()
    assert identities.unlearned(["2026-03-01"]) == []


def test_what_was_learned_and_vanished_from_the_temporary_folder_is_an_error(
    identities: Identities, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for number, what in enumerate(("*.arrows", "cio_pipeline_spill_*")):

        def reaped(what: str = what) -> Iterator[Learned]:
            yield learned(("u1", True, None))[0]
            for path in tmp_path.glob(f"**/{what}"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

        with pytest.raises(StorageError, match="run this again"):
            identities.replace("2026-03-01", "set", number, reaped())
    assert identities.unlearned(["2026-03-01"]) == ["2026-03-01"]


def test_days_are_learned_under_a_setting_or_at_all(identities: Identities) -> None:
    keep(identities, "2026-03-01", learned(), setting="person")
    assert identities.unlearned(["2026-03-01", "2026-03-02"]) == ["2026-03-02"]
    assert identities.unlearned(["2026-03-01"], "set") == ["2026-03-01"]


def test_no_people_is_no_question(identities: Identities) -> None:
    assert before(identities, "2026-03-02") == {}


def test_odd_ids_are_kept_as_they_are(identities: Identities) -> None:
    keep(identities, "2026-03-01", learned(("nul\0 'quote' ü", True, "nul\0@example.com")))
    assert before(identities, "2026-03-02", "nul\0 'quote' ü") == {"nul\0 'quote' ü": (True, "nul\0@example.com")}


def test_an_id_with_nul_and_ids_that_look_like_its_escape_are_three_people(identities: Identities) -> None:
    ids = ("a\0b", r"a\0b", r"a\x00b")
    keep(identities, "2026-03-01", learned(*((who, True, None) for who in ids)))
    assert before(identities, "2026-03-02", *ids, r"a\\0b") == {
        **dict.fromkeys(ids, (True, None)),
        r"a\\0b": (False, None),
    }


def merge(anonymous_id: str, distinct_id: str) -> Learned:
    """What is learned from a `$identify` that names an anonymous id."""
    row = {"anonymous_id": anonymous_id, "distinct_id": distinct_id, "timestamp": pd.Timestamp("2026-03-01", tz="UTC")}
    frame = pd.DataFrame([{**row, "uuid": "00000000-0000-0000-0000-000000000001"}])
    return Learned.of(facts(), frame.astype({"timestamp": "datetime64[us, UTC]"}), {(anonymous_id, distinct_id)})


def test_r21_a_person_is_found_through_any_chain_and_nobody_else(identities: Identities) -> None:
    keep(identities, "2026-03-01", learned(("u1", False, "Jane@example.com"), ("u3", False, "joe@example.com")))
    keep(identities, "2026-03-02", [merge("anon", "u2"), *learned(("u2", False, "JANE@example.com"))])
    nobody = pd.DataFrame(columns=["distinct_id", "identified", "email", "email_set_at"])
    links = {("jane@work.example.com", "Jane@Work.example.com"), ("jane@work.example.com", "u1")}
    keep(identities, HISTORY_PARTITION, [Learned.of(nobody, NOBODY_NAMED, links)])
    jane = {"u1", "u2", "anon", "Jane@Work.example.com", "jane@example.com", "jane@work.example.com"}
    for names in (["anon"], ["jane@work.example.com"], ["u1", "unheard@example.com"]):
        assert identities.linked(names) == jane | set(names)
    assert identities.linked(["u9"]) == {"u9"}
    assert {"anon", "u1", "u2", "u3", "Jane@example.com", "jane@example.com"} <= set(identities.all_names())


def test_r21_what_was_one_persons_stays_so_when_the_day_is_learned_again(identities: Identities) -> None:
    """PostHog may have deleted the person since."""
    keep(identities, "2026-03-01", [*learned(("u1", False, "jane@example.com")), merge("anon", "u1")])
    keep(identities, "2026-03-01", learned(("u1", False, "other@example.com")))
    assert identities.linked(["jane@example.com"]) == {"u1", "anon", "jane@example.com", "other@example.com"}


def test_an_email_is_shared_by_those_identified_whose_last_one_it_is(identities: Identities) -> None:
    keep(
        identities,
        "2026-03-01",
        learned(("u1", True, "Team@example.com"), ("u2", True, "team@example.com"), ("u3", True, "old@example.com")),
    )
    keep(
        identities,
        "2026-03-02",
        learned(
            ("u3", True, "new@example.com"),
            ("u4", True, "old@example.com"),
            ("u5", True, "team@example.com"),
            ("anonymous", False, "new@example.com"),
            ("\\odd\0", True, "new@example.com"),
        ),
    )
    assert identities.shared_emails("2026-03-01") == {"team@example.com": ["u1", "u2", "u5"]}
    assert identities.shared_emails("2026-03-02") == {
        "team@example.com": ["u1", "u2", "u5"],
        "new@example.com": ["\\odd\0", "u3"],
    }
    assert identities.shared_emails("2026-03-03") == {}


def test_the_last_derived_day_is_known(identities: Identities) -> None:
    assert identities.last_derived() is None
    for day in ("2026-03-03", "2026-03-01"):
        derive(identities, day, 0)
    assert identities.last_derived() == "2026-03-03"


def test_r18_an_email_of_the_history_counts_if_it_was_set_after_that_of_the_last_day(identities: Identities) -> None:
    """As where CIO_START_DATE was moved to a later day, and the history read again."""

    def at(email: str, time: int) -> list[Learned]:
        columns = ["distinct_id", "identified", "email", "email_set_at"]
        rows = pd.DataFrame([("u1", True, email, time)], columns=columns)
        return [Learned.of(rows, NOBODY_NAMED, {(email, "u1")})]

    keep(identities, "2026-03-01", at("old@example.com", 1))
    keep(identities, HISTORY_PARTITION, at("new@example.com", 8))
    assert before(identities, "2026-03-10", "u1") == {"u1": (True, "new@example.com")}
    keep(identities, "2026-03-09", at("newest@example.com", 9))
    assert before(identities, "2026-03-10", "u1") == {"u1": (True, "newest@example.com")}
    assert before(identities, "2026-03-09", "u1") == {"u1": (True, "new@example.com")}
