"""Identities over others: the same is known as if all days had been learned in one place."""

from __future__ import annotations

from typing import Any

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.rules.stitching import MERGE_COLUMNS
from cio_pipeline.state.identities import Identities
from cio_pipeline.state.identity_tables import HISTORY_PARTITION
from cio_pipeline.state.learned import Learned
from cio_pipeline.state.overlay import OverlayIdentities
from cio_pipeline_tests.examples import examples

DAYS = [f"2026-03-0{number}" for number in range(1, 6)]
PEOPLE, EMAILS = ["u1", "u2", "u3"], ["one@example.com", "two@example.com"]
FACT = st.tuples(st.sampled_from(PEOPLE), st.booleans(), st.sampled_from([None, *EMAILS]), st.sampled_from([None, *PEOPLE]))
LearnedByDay = dict[str, list[tuple[str, bool, str | None, str | None]]]


def learn(identities: Identities, day: str, learned: list[Any]) -> None:
    """A fact is a distinct_id, whether it was identified, its email, and the anonymous id that it names."""
    at = 0 if day == HISTORY_PARTITION else pd.Timestamp(day, tz="UTC").value // 1000
    facts = pd.DataFrame(
        [(who, was, email, at if email else None) for who, was, email, _ in learned],
        columns=["distinct_id", "identified", "email", "email_set_at"],
        dtype=object,
    )
    named = [(anonymous, who, pd.Timestamp(day, tz="UTC"), "u") for who, _, _, anonymous in learned if anonymous and at]
    merges = pd.DataFrame(named, columns=MERGE_COLUMNS).astype({"timestamp": "datetime64[us, UTC]"})
    links = {(name, who) for who, _, email, anonymous in learned for name in (email, anonymous) if name}
    identities.replace(day, "set", 1, [Learned.of(facts.astype({"identified": bool}), merges, links)])


def seen(identities: Identities, day: str) -> Any:
    rows: Any = identities.known_before(day, PEOPLE).itertuples()
    merges: Any = identities.merges_between(DAYS[0], day, PEOPLE).itertuples()
    return (
        sorted((row.distinct_id, bool(row.identified), row.email, row.email_set_at) for row in rows),
        sorted((row.anonymous_id, row.distinct_id, row.timestamp, row.uuid) for row in merges),
        [identities.linked([name]) for name in (*PEOPLE, *EMAILS)],
        set(identities.all_names()),
        identities.unlearned([HISTORY_PARTITION, *DAYS], "set"),
        identities.inputs_fingerprint(day, 2),
    )


@examples(8)
@given(
    learned=st.dictionaries(
        st.sampled_from([HISTORY_PARTITION, *DAYS]), st.lists(FACT, max_size=4, unique_by=lambda fact: fact[0])
    ),
    first=st.sampled_from(DAYS),
    history_is_above=st.booleans(),
)
def test_what_is_learned_over_others_counts_as_if_it_were_in_one_place(
    learned: LearnedByDay, first: str, history_is_above: bool
) -> None:
    together, below = Identities("sqlite://"), Identities("sqlite://")
    over = OverlayIdentities("sqlite://", below, first)
    places = {day: over if day >= first else below for day in DAYS} | {HISTORY_PARTITION: over if history_is_above else below}
    for day, facts in learned.items():
        learn(together, day, facts)
        learn(places[day], day, facts)
    for day in DAYS:
        if day >= first:
            assert seen(over, day) == seen(together, day)
    for day in learned:
        if day >= first:
            learn(below, day, [("u1", True, EMAILS[0], None)])
    for day in DAYS:
        if day >= first:
            assert seen(over, day)[:2] == seen(together, day)[:2], "what is known below of these days does not count"
