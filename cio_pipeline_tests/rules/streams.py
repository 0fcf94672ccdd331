"""Small streams of events for the tests of the rules."""

from __future__ import annotations

import json
import uuid
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa

from cio_pipeline.rules.classify import TO_SEND, classify
from cio_pipeline.rules.columns import utf8
from cio_pipeline.rules.facts import ORDER
from cio_pipeline.rules.operations import derived_tables
from cio_pipeline.rules.options import Options
from cio_pipeline.rules.properties import parse_properties

YESTERDAY = 1_772_323_200_000_000
"""2026-03-01, in microseconds: when all that is known of earlier days was set."""


def known(**people: tuple[bool, str | None]) -> pd.DataFrame:
    """What earlier days said: distinct_id=(identified, email)."""
    rows = [(distinct_id, identified, email, YESTERDAY) for distinct_id, (identified, email) in people.items()]
    return pd.DataFrame(rows, columns=["distinct_id", "identified", "email", "email_set_at"], dtype=object).astype(
        {"identified": bool}
    )


NOBODY = known()


def event(
    name: str = "signed up",
    distinct_id: str = "u1",
    at: str = "2026-03-02T10:00:00Z",
    person: dict[str, Any] | None = None,
    raw: str | None = None,
    **properties: Any,
) -> dict[str, Any]:
    """One row of an events frame; `set_`, `set_once_` and `unset_` stand for `$set`, `$set_once` and `$unset`."""
    named = {("$" + key[:-1] if key.endswith("_") else key): value for key, value in properties.items()}
    return {
        "uuid": None,
        "event": name,
        "distinct_id": distinct_id,
        "timestamp": pd.Timestamp(at),
        "properties": json.dumps(named) if raw is None else raw,
        "person_properties": None if person is None else json.dumps(person),
    }


def frame(*events: dict[str, Any]) -> pd.DataFrame:
    """The events as the stages take them: uuids in the order given, in their order."""
    rows = [{**row, "uuid": row["uuid"] or str(uuid.UUID(int=number + 1))} for number, row in enumerate(events)]
    table = pd.DataFrame(rows)
    table["timestamp"] = table["timestamp"].astype("datetime64[us, UTC]")
    table = table.sort_values(ORDER, ignore_index=True)
    parsed = parse_properties(*(utf8(table[name]) for name in ("event", "properties", "person_properties")))
    return pd.concat([table, parsed.to_pandas()], axis="columns")


def outcomes(*events: dict[str, Any], earlier: pd.DataFrame = NOBODY, **options: Any) -> list[str]:
    """The outcome of each event, in time order."""
    return [str(outcome) for outcome in classify(frame(*events), earlier, Options(**options))["outcome"]]


def keys(*events: dict[str, Any], earlier: pd.DataFrame = NOBODY, **options: Any) -> list[str]:
    """The key of each event, in time order."""
    return [str(key) for key in classify(frame(*events), earlier, Options(**options))["key"]]


class Frames(NamedTuple):
    """`Tables` as frames."""

    customers: pd.DataFrame
    events: pd.DataFrame
    rejects: pd.DataFrame
    emails_in_another_case: int

    @property
    def shard(self) -> tuple[pa.Table, pa.Table]:
        """The customers and events as a delivery takes them."""
        customers, events = (pa.Table.from_pandas(made, preserve_index=False) for made in (self.customers, self.events))
        return customers, events


def tables(*events: dict[str, Any], earlier: pd.DataFrame = NOBODY, **options: Any) -> Frames:
    """What the events come to."""
    classified = classify(frame(*events), earlier, Options(**options))
    made = derived_tables(classified[classified["outcome"] == TO_SEND], Options(**options))
    frames = (made.customers.to_pandas(), made.events.to_pandas(), made.rejects.to_pandas())
    return Frames(*frames, made.emails_in_another_case)


def customers(*events: dict[str, Any], earlier: pd.DataFrame = NOBODY, **options: Any) -> dict[str, dict[str, Any]]:
    """The attributes of each customer, by key."""
    merged: dict[str, dict[str, Any]] = {}
    for row in tables(*events, earlier=earlier, **options).customers.itertuples():
        merged.setdefault(str(row.key), {}).update(json.loads(str(row.operation))["attributes"])
    return merged


def sent(*events: dict[str, Any], earlier: pd.DataFrame = NOBODY, **options: Any) -> list[dict[str, Any]]:
    """The operations of the events, in time order."""
    found = tables(*events, earlier=earlier, **options).events["operation"]
    return [json.loads(operation) for operation in found]


def reasons(*events: dict[str, Any], **options: Any) -> list[tuple[str, str, str]]:
    """What was rejected: (what, name, reason)."""
    rejects = tables(*events, **options).rejects
    return list(rejects[["what", "name", "reason"]].itertuples(index=False, name=None))
