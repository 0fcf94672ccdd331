"""R3 to R6 and R14: which events are sent, which are held back or refused and why, and whose they are."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from cio_pipeline.json_text import read_leniently
from cio_pipeline.rules.distinct_ids import ID_BYTES, is_blank, is_nobodys
from cio_pipeline.rules.facts import known_at_each_event
from cio_pipeline.rules.options import Options
from cio_pipeline.rules.values import is_email, is_uuid

NAME_BYTES = 100
"""Customer.io's limit for an event's name (Track API, OpenAPI)."""

NEVER_SENT = ("$create_alias", "$groupidentify")
"""R4: they tell of ids and groups, under distinct_ids that may be nobody's."""

LATEST = 253_402_300_800_000_000
"""The year 10000, in microseconds since 1970."""

PERSONLESS_NAME = '"$process_person_profile"'
PERSONLESS_TEXT = re.compile(re.escape(PERSONLESS_NAME) + r"\s*:\s*false")

SENT = "sent"
REFUSED = "refused: "
FILTERED = "filtered: "
NOT_IDENTIFIED = FILTERED + "not identified yet (R5)"
NO_EMAIL = FILTERED + "no email yet (R5)"
PERSONLESS = FILTERED + "PostHog keeps no person for it (R5)"
HELD_BACK = (NOT_IDENTIFIED, NO_EMAIL, PERSONLESS)


def classify(events: pd.DataFrame, known: pd.DataFrame, options: Options) -> pd.DataFrame:
    """The events frame with more columns.

    outcome: `sent`, `filtered: <reason>` or `refused: <reason>` (R15 counts by it); key: `id:<distinct_id>` or
    `email:<lower case>` (R6); identifier: as whose it is sent; email and email_set: the email so far or None, and when it was
    set (R1); personless: whether PostHog keeps no person for it (R5). `known` is what earlier days taught (`facts`).
    """
    facts = known_at_each_event(events, known).assign(
        personless=[is_personless(text) for text in events["properties"].tolist()]
    )
    return events.assign(
        outcome=_outcomes(events, facts, options),
        key=_keys(events, facts, options),
        identifier=events["distinct_id"],
        email=facts["email"],
        email_set=facts["email_set"],
        personless=facts["personless"],
    )


def is_personless(properties: Any) -> bool:
    """R5: whether the event says that PostHog is to keep no person for it.

    Parsing is dear: only text that says so anywhere, or has a name with escapes, is parsed.
    """
    if not isinstance(properties, str):
        return False
    at = properties.find(PERSONLESS_NAME)
    if (at < 0 or not PERSONLESS_TEXT.search(properties, at)) and "\\u00" not in properties:
        return False
    return read_leniently(properties).get("$process_person_profile") is False


def _outcomes(events: pd.DataFrame, facts: pd.DataFrame, options: Options) -> Any:
    names, ids, uuids = (events[column].tolist() for column in ("event", "distinct_id", "uuid"))
    times = events["timestamp"].astype("datetime64[us, UTC]").astype("int64").to_numpy()
    allowed = frozenset(options.event_allowlist)
    reasons: dict[str, Any] = {
        **{FILTERED + f"{never} is never sent (R4)": _of_each(names, never.__eq__) for never in NEVER_SENT},
        FILTERED + "not on the allowlist (R3)": _of_each(names, lambda name: name not in allowed) & bool(allowed),
        REFUSED + "distinct_id is blank (R14)": _of_each(ids, is_blank),
        REFUSED + f"distinct_id is over {ID_BYTES} bytes (R14)": _of_each(ids, lambda value: len(value.encode()) > ID_BYTES),
        REFUSED + "distinct_id is nobody's (R14)": _of_each(ids, is_nobodys),
        REFUSED + "name is blank (R14)": _of_each(names, lambda name: not name.strip()),
        REFUSED + f"name is over {NAME_BYTES} bytes (R14)": _of_each(
            names, lambda name: len(name.strip().encode()) > NAME_BYTES
        ),
        REFUSED + "uuid is no UUID (R14)": ~np.fromiter(map(is_uuid, uuids), dtype=bool),
        REFUSED + "time is before 1970 or after 9999 (R14)": (times < 0) | (times >= LATEST),
        NOT_IDENTIFIED: _held_back(facts["identified"], options, "identified"),
        NO_EMAIL: _held_back(facts["email"].notna(), options, "emails"),
        PERSONLESS: _held_back(~facts["personless"], options, "profiles"),
    }
    return np.select(list(reasons.values()), [np.array(reason, dtype=object) for reason in reasons], default=SENT)


def _of_each(texts: list[str], is_so: Callable[[str], bool]) -> Any:
    """Whether it is so of each text, asked once of those that are the same."""
    answers = {text: is_so(text) for text in set(texts)}
    return np.fromiter((answers[text] for text in texts), dtype=bool)


def _held_back(passes: pd.Series[Any], options: Options, choice: str) -> Any:
    return ~passes.to_numpy(bool) & (options.anonymous_users == choice)


def _keys(events: pd.DataFrame, facts: pd.DataFrame, options: Options) -> pd.Series[Any]:
    """R6. An email so far is always known where the distinct_id is an email."""
    by_id = {value: _own_key(value) for value in events["distinct_id"].unique().tolist()}
    keys = [
        f"email:{email.lower()}" if options.identify_by_email and isinstance(email, str) else by_id[distinct_id]
        for distinct_id, email in zip(events["distinct_id"].tolist(), facts["email"].tolist(), strict=True)
    ]
    return pd.Series(keys, index=events.index, dtype=object)


def _own_key(distinct_id: str) -> str:
    return f"email:{distinct_id.lower()}" if is_email(distinct_id) else f"id:{distinct_id}"
