"""R1 over days: what earlier days taught is found, whatever order they were learned in."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from cio_pipeline.storage.identities import Identities


def learned(*rows: tuple[str, bool, str | None]) -> list[pd.DataFrame]:
    return [pd.DataFrame(rows, columns=["distinct_id", "identified", "email"])]


def before(identities: Identities, day: str, *distinct_ids: str) -> dict[str, tuple[bool, str | None]]:
    frame = identities.before(day, list(distinct_ids))
    return {row.distinct_id: (row.identified, row.email) for row in frame.itertuples()}  # type: ignore[misc]


@pytest.fixture
def identities(tmp_path: Path) -> Identities:
    return Identities(f"sqlite:///{tmp_path / 'ledger.db'}")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_last_earlier_day_with_an_email_counts(identities: Identities, order: tuple[int, ...]) -> None:
    days = [
        ("2026-03-01", learned(("u1", False, "one@example.com"))),
        ("2026-03-02", learned(("u1", True, None), ("u2", False, "two@example.com"))),
        ("2026-03-03", learned(("u1", False, "three@example.com"))),
    ]
    for number in order:
        identities.replace(*days[number])
    assert before(identities, "2026-03-01", "u1") == {"u1": (False, None)}
    assert before(identities, "2026-03-03", "u1", "u2", "u3") == {
        "u1": (True, "one@example.com"),
        "u2": (False, "two@example.com"),
        "u3": (False, None),
    }
    assert before(identities, "2026-03-04", "u1") == {"u1": (True, "three@example.com")}


def test_a_day_that_is_learned_again_replaces_what_it_taught(identities: Identities) -> None:
    identities.replace("2026-03-01", learned(("u1", True, "one@example.com")))
    identities.replace("2026-03-01", learned(("u2", True, None)))
    assert before(identities, "2026-03-02", "u1", "u2") == {"u1": (False, None), "u2": (True, None)}


def test_days_that_were_never_learned_are_missing(identities: Identities) -> None:
    identities.replace("2026-03-02", learned())
    assert identities.missing(["2026-03-01", "2026-03-02", "2026-03-03"]) == ["2026-03-01", "2026-03-03"]


def test_no_people_is_no_question(identities: Identities) -> None:
    assert before(identities, "2026-03-02") == {}
