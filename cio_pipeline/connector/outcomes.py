"""R3 to R6 and R14: which events are sent, which are held back or refused and why, and whose they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cio_pipeline.connector.facts import ID_BYTES, so_far, usable
from cio_pipeline.connector.options import Options
from cio_pipeline.connector.values import is_email

NAME_BYTES = 100
"""Customer.io's limit for an event's name (Track API, OpenAPI)."""

SENT = "sent"
REFUSED = "refused: "
FILTERED = "filtered: "
NOT_IDENTIFIED = FILTERED + "not identified yet (R5)"
NO_EMAIL = FILTERED + "no email yet (R5)"
HELD_BACK = (NOT_IDENTIFIED, NO_EMAIL)


def decide(events: pd.DataFrame, known: pd.DataFrame, options: Options) -> pd.DataFrame:
    """The events frame with more columns.

    outcome: `sent`, `filtered: <reason>` or `refused: <reason>` (R15 counts by it); key: `id:<distinct_id>` or
    `email:<lower case>` (R6); identifier: as whose it is sent; email and email_set: the email so far or None, and when it was
    set (R1). `known` is what earlier days taught (`facts.so_far`).
    """
    facts = so_far(events, known, options)
    whose = {"key": _keys(events, facts, options), "identifier": events["distinct_id"]}
    return events.assign(outcome=_outcomes(events, facts, options), **whose, email=facts["email"], email_set=facts["email_set"])


def _outcomes(events: pd.DataFrame, facts: pd.DataFrame, options: Options) -> Any:
    names, ids = events["event"].tolist(), events["distinct_id"].tolist()
    reasons: dict[str, Any] = {
        FILTERED + "$create_alias is never sent (R4)": _mask(name == "$create_alias" for name in names),
        FILTERED + "not on the allowlist (R3)": _mask(_off_allowlist(names, options)),
        REFUSED + "distinct_id is blank (R14)": _mask(not value or value.isspace() for value in ids),
        REFUSED + f"distinct_id is over {ID_BYTES} bytes (R14)": _mask(not usable(value) for value in ids),
        REFUSED + "name is blank (R14)": _mask(not name.strip() for name in names),
        REFUSED + f"name is over {NAME_BYTES} bytes (R14)": _mask(_too_long(name.strip()) for name in names),
        NOT_IDENTIFIED: _held_back(facts, options, "identified"),
        NO_EMAIL: _held_back(facts, options, "emails"),
    }
    return np.select(list(reasons.values()), [np.array(reason, dtype=object) for reason in reasons], default=SENT)


def _mask(values: Any) -> Any:
    return np.fromiter(values, dtype=bool)


def _off_allowlist(names: list[str], options: Options) -> list[bool]:
    allowed = frozenset(options.event_allowlist)
    return [bool(allowed) and name not in allowed for name in names]


def _too_long(name: str) -> bool:
    return len(name.encode()) > NAME_BYTES


def _held_back(facts: pd.DataFrame, options: Options, choice: str) -> Any:
    passes = facts["identified"] if choice == "identified" else facts["email"].notna()
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
