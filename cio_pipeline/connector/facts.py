"""R1: what events teach about a distinct_id, and what is known of it at each event.

An events frame has the columns uuid, event, distinct_id, properties, person_properties (text; the JSON of the last two may
be absent) and timestamp (UTC, microseconds). It holds all of a distinct_id's events of the day, in the order (timestamp, uuid).
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from cio_pipeline.connector.jsontext import peek_object
from cio_pipeline.connector.options import Options
from cio_pipeline.connector.values import is_email

ID_BYTES = 150
"""Customer.io's limit for a person's id (Track API, OpenAPI)."""


def usable(distinct_id: str) -> bool:
    """R14: a distinct_id that Customer.io can take, neither blank nor over 150 bytes."""
    return not distinct_id.isspace() and 0 < len(distinct_id.encode()) <= ID_BYTES


def learn(events: pd.DataFrame, options: Options) -> pd.DataFrame:
    """What the day teaches, one row per distinct_id that it teaches something about.

    Gives distinct_id (text), identified (bool: a `$identify` was seen) and email (text or None: the last valid one set).
    """
    taught = _taught(events, options)
    by_id = taught.groupby("distinct_id", sort=False)
    identities = pd.DataFrame({"identified": by_id["identified"].any(), "email": by_id["email"].last()})
    learned = identities[identities["identified"] | identities["email"].notna()].reset_index()
    emails = [email if isinstance(email, str) else None for email in learned["email"].tolist()]
    return learned.assign(email=pd.Series(emails, index=learned.index, dtype=object))


def so_far(events: pd.DataFrame, known: pd.DataFrame, options: Options) -> pd.DataFrame:
    """What is known up to and including each event: identified (bool) and email (text or None), on the index of `events`.

    `known` is what all earlier days taught: distinct_id, identified, email, one row per distinct_id.
    """
    taught = _taught(events, options)
    by_id = taught.groupby("distinct_id", sort=False)
    earlier = known.set_index("distinct_id").reindex(taught["distinct_id"])
    identified = by_id["identified"].cummax().to_numpy(bool) | (earlier["identified"] == True).to_numpy(bool)  # noqa: E712
    email = by_id["email"].ffill().to_numpy(object)
    fallback = [
        address if isinstance(address, str) else own
        for address, own in zip(earlier["email"].tolist(), _own_emails(events["distinct_id"]), strict=True)
    ]
    emails = [a if isinstance(a, str) else b for a, b in zip(email, fallback, strict=True)]
    return pd.DataFrame({"identified": identified, "email": pd.Series(emails, index=events.index, dtype=object)})


def given_attributes(properties: dict[str, Any], person_properties: dict[str, Any], options: Options) -> dict[str, Any]:
    """The attributes an event gives: its `$set`, or the person's properties (`CIO_ATTRIBUTES_FROM`).

    R7: a `$set` that is no object counts as absent.
    """
    given = person_properties if options.attributes_from == "person" else properties.get("$set")
    return given if isinstance(given, dict) else {}


def _taught(events: pd.DataFrame, options: Options) -> pd.DataFrame:
    """What each event teaches by itself: distinct_id, identified, email (None: nothing)."""
    can_teach = [usable(distinct_id) for distinct_id in events["distinct_id"].tolist()]
    source = "person_properties" if options.attributes_from == "person" else "properties"
    emails = [
        _email(text, options) if can and isinstance(text, str) and _may_hold_email(text) else None
        for can, text in zip(can_teach, events[source].tolist(), strict=True)
    ]
    return pd.DataFrame(
        {
            "distinct_id": events["distinct_id"].astype(object),
            "identified": (events["event"] == "$identify").to_numpy(bool) & pd.Series(can_teach, dtype=bool).to_numpy(),
            "email": pd.Series(emails, index=events.index, dtype=object),
        }
    )


def _may_hold_email(text: str) -> bool:
    """Parsing is dear: only text that names an `email`, plainly or by escapes, is parsed for one."""
    return '"email"' in text or "\\u00" in text


def _email(text: str, options: Options) -> str | None:
    found = peek_object(text)
    email = given_attributes(found, found, options).get("email")
    return email if is_email(email) else None


def _own_emails(distinct_ids: pd.Series[Any]) -> list[str | None]:
    """The distinct_id itself where that is an e-mail."""
    codes, uniques = pd.factorize(distinct_ids)
    own = [value if is_email(value) else None for value in uniques.tolist()]
    return [own[code] for code in codes]
