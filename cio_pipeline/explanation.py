"""What became of a person's events and attributes, and why, according to the tables, the identities and the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.customer_state import State, name_hash, pack_ids, unpack
from cio_pipeline.customerio.plan import are_delivered
from cio_pipeline.customerio.sample import mask_id, mask_key
from cio_pipeline.customerio.suppression import Suppressed
from cio_pipeline.events import KEPT_EVENTS, events_of
from cio_pipeline.json_text import read_object
from cio_pipeline.masking import mask
from cio_pipeline.rules.classify import FILTERED, HELD_BACK, REFUSED, classify
from cio_pipeline.rules.customers import CUSTOMERS
from cio_pipeline.rules.distinct_ids import usable
from cio_pipeline.rules.operations import EVENTS, REJECTS
from cio_pipeline.rules.options import Options
from cio_pipeline.rules.values import is_email
from cio_pipeline.state.identities import Identities
from cio_pipeline.state.ledger import Ledger
from cio_pipeline.state.ledger_tables import customer_item
from cio_pipeline.tables.tables import Tables

EVENT_COLUMNS = ["timestamp", "uuid", "event", "distinct_id", "outcome", "day"]
COLUMNS = {
    "events": EVENTS.empty_table().select(["uuid", "ulid", "key", "distinct_id", "name", "timestamp"]),
    "customers": CUSTOMERS.empty_table().select(["key", "part", "operation", "state"]),
    "rejects": REJECTS.empty_table(),
}
"""What is read of each table."""

ACKNOWLEDGED, NOT_YET, NEWER = "yes", "not yet", "a newer value is (R17)"
SUPPRESSED = "CIO_SUPPRESSED_FILE names this person (R21)"


class Event(NamedTuple):
    """What became of an event.

    outcome: `sent`, `filtered` (R3, R4), `held back` (R5, R21), `refused` (R14) or `not derived yet`; reason: the rule's words;
    key: of the customer that it is sent to; acknowledged: by Customer.io: `yes`, `not yet` or `refused: <reason>`.
    """

    time: str
    event: str
    distinct_id: str
    uuid: str
    outcome: str
    reason: str = ""
    key: str = ""
    acknowledged: str = ""


class Attribute(NamedTuple):
    """The last value of an attribute that the days give a customer, when it was set, and whether Customer.io has it."""

    key: str
    attribute: str
    value: Any
    set_at: str
    acknowledged: str


class LeftOut(NamedTuple):
    """An attribute or property of a sent event that was left out or changed, and why."""

    time: str
    event: str
    what: str
    name: str
    reason: str


@dataclass(frozen=True)
class Explanation:
    """What became of a person's events and attributes; names: the person's distinct_ids, and emails in lower case (R21)."""

    names: list[str]
    events: list[Event]
    attributes: list[Attribute]
    left_out: list[LeftOut]


@dataclass(frozen=True)
class Found:
    """What is kept of a person's events of some days.

    Each frame has the column `day`: whose table a row is of. events: rows of `posthog_events`, with `classify`'s outcome;
    sent: rows of `events`; rejects: rows of `rejects`; upserts: rows of `customers`. derived: the days that have these three
    tables; acknowledged: the ids in Customer.io of the events that it took; refused: Customer.io's reasons, by item; states:
    what it holds of these customers; is_suppressed: whether the suppression list names the person.
    """

    events: pd.DataFrame
    sent: pd.DataFrame
    rejects: pd.DataFrame
    upserts: pd.DataFrame
    derived: Set[str]
    acknowledged: Set[str]
    refused: Mapping[str, str]
    states: Mapping[str, State]
    is_suppressed: bool


def explain(names: Iterable[str], found: Found) -> Explanation:
    """What became of each event, by time, and of each attribute, by key and name.

    What the tables say is taken from them. Why an event that is in none of them was held back is worked out with the current
    settings.
    """
    return Explanation(sorted(names), _events(found), _attributes(found), _left_out(found))


def _events(found: Found) -> list[Event]:
    sent = {_identity(row, row.name): row for row in _rows(found.sent)}
    refused = {_identity(row, row.event): row.reason for row in _rows(found.rejects) if row.what == "event"}
    made = []
    for row in _rows(found.events.sort_values(["timestamp", "uuid", "event", "distinct_id"])):
        event = Event(_time(row.timestamp), row.event, row.distinct_id, row.uuid, row.outcome)
        identity = _identity(row, row.event)
        if identity in sent:
            made.append(_sent(event, row.day, sent[identity], found))
        elif identity in refused:
            made.append(event._replace(outcome="refused", reason=refused[identity]))
        else:
            made.append(_not_sent(event, row.day, found))
    return made


def _identity(row: Any, name: str) -> tuple[Any, ...]:
    """The same in each table for the same event."""
    return (row.timestamp, row.uuid, name.strip(), row.distinct_id)


def _sent(event: Event, day: str, sent: Any, found: Found) -> Event:
    reason = f"stitched, and sent with {sent.day} (R16)" if sent.day != day else ""
    event = event._replace(outcome="sent", reason=reason, key=sent.key, acknowledged=NOT_YET)
    if sent.ulid in found.acknowledged:
        return event._replace(acknowledged=ACKNOWLEDGED)
    if sent.ulid in found.refused:
        return event._replace(acknowledged=f"refused: {found.refused[sent.ulid]}")
    return event._replace(outcome="held back", reason=SUPPRESSED, acknowledged="") if found.is_suppressed else event


def _not_sent(event: Event, day: str, found: Found) -> Event:
    outcome = event.outcome
    if outcome in HELD_BACK:
        return event._replace(outcome="held back", reason=outcome.removeprefix(FILTERED))
    for prefix, kind in ((FILTERED, "filtered"), (REFUSED, "refused")):
        if outcome.startswith(prefix):
            return event._replace(outcome=kind, reason=outcome.removeprefix(prefix))
    late = "it was extracted after its day was derived" if day in found.derived else ""
    return event._replace(outcome="not derived yet", reason=late)


def _attributes(found: Found) -> list[Attribute]:
    last: dict[tuple[str, str], Attribute] = {}
    for row in _rows(found.upserts.sort_values("day", kind="stable")):
        state, stored = unpack(row.state), found.states.get(row.key, {})
        refusal = found.refused.get(customer_item(row.key, row.part))
        for name, value in read_object(row.operation)["attributes"].items():
            hashed, time = state[name_hash(name)]
            there = stored.get(name_hash(name))
            acknowledged = f"refused: {refusal}" if refusal else NOT_YET
            if there is not None and there[0] == hashed:
                acknowledged = ACKNOWLEDGED
            elif there is not None and there[1] > time:
                acknowledged = NEWER
            attribute = Attribute(row.key, name, value, _time(datetime.fromtimestamp(time, UTC)), acknowledged)
            before = last.get((row.key, name), attribute)
            last[row.key, name] = max(before, attribute, key=lambda one: one.set_at)
    return [last[where] for where in sorted(last)]


def _left_out(found: Found) -> list[LeftOut]:
    rows = _rows(found.rejects.sort_values("timestamp", kind="stable"))
    return [LeftOut(_time(row.timestamp), row.event, row.what, row.name, row.reason) for row in rows if row.what != "event"]


def _time(time: Any) -> str:
    """UTC, to the second."""
    return str(time).partition("+")[0].partition(".")[0]


def _rows(frame: pd.DataFrame) -> Iterator[Any]:
    return frame.itertuples(index=False)


def masked(made: Explanation) -> Explanation:
    """The same, masked: of a value only its kind is given."""
    return Explanation(
        [mask_id(name) for name in made.names],
        [
            one._replace(
                event=mask(one.event),
                distinct_id=mask_id(one.distinct_id),
                uuid="",
                key=one.key and mask_key(one.key),
                acknowledged=mask(one.acknowledged),
            )
            for one in made.events
        ],
        [
            one._replace(
                key=mask_key(one.key),
                attribute=mask(one.attribute),
                value=_kind(one.value),
                acknowledged=mask(one.acknowledged),
            )
            for one in made.attributes
        ],
        [one._replace(event=mask(one.event), name=mask(one.name)) for one in made.left_out],
    )


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", dict: "an object", list: "a list", type(None): "null"}
    return f"text of {len(value):,} characters" if isinstance(value, str) else kinds[type(value)]


def person(name: str, identities: Identities) -> set[str]:
    """R21: all distinct_ids and emails (in lower case) of the person that a distinct_id or email belongs to."""
    found = identities.linked({name.lower() if "@" in name else name})
    return found if len(found) > 1 else {name, *found}


def look_up(
    names: Set[str],
    days: Sequence[str],
    tables: Tables,
    identities: Identities,
    ledger: Ledger,
    options: Options,
    suppressed: Suppressed,
) -> Found:
    """What is kept of the person with these names, of events of these days. A day that was never extracted or derived has
    nothing."""
    last = date.fromisoformat(days[-1])
    stitched_days = options.stitch_anonymous_days if options.stitches else 0
    sent_days = [*days, *(str(last + timedelta(days=ahead)) for ahead in range(1, stitched_days + 1))]
    sent = {day: _where(tables, "events", day, "distinct_id", names) for day in sent_days}
    keys = {f"id:{name}" for name in names} | {f"email:{name.lower()}" for name in names if is_email(name)}
    keys |= {key for rows in sent.values() for key in rows["key"]}
    refused = [one for day in sent_days for one in ledger.refused(day).values() if one.key in keys]
    return Found(
        events=pd.concat(_classified(day, names, tables, identities, options) for day in days),
        sent=pd.concat(sent.values()),
        rejects=pd.concat(_where(tables, "rejects", day, "distinct_id", names) for day in days),
        upserts=pd.concat(_where(tables, "customers", day, "key", keys) for day in days),
        derived={day for day in days if tables.current("events", day) is not None},
        acknowledged={ulid for day, rows in sent.items() for ulid in _acknowledged(day, rows, ledger)},
        refused={one.item: one.reason for one in refused},
        states=ledger.states(keys),
        is_suppressed=any(map(suppressed.has, names)),
    )


def _classified(day: str, names: Set[str], tables: Tables, identities: Identities, options: Options) -> pd.DataFrame:
    """The person's rows of `posthog_events`, with their outcome and the day."""
    found = [KEPT_EVENTS.empty_table()]
    if tables.current("posthog_events", day) is not None:
        found += events_of(tables, day, list(names))
    known = identities.before(day, [name for name in names if usable(name)])
    return pd.concat([classify(rows.to_pandas(), known, options) for rows in found]).assign(day=day)[EVENT_COLUMNS]


def _where(tables: Tables, table: str, day: str, column: str, values: Set[str]) -> pd.DataFrame:
    """The rows of a day's table with one of the values, and the day; none where the day was never derived."""
    empty = COLUMNS[table]
    wanted = pa.array(sorted(values), empty.schema.field(column).type)
    written = tables.current(table, day) is not None
    shards = tables.read_arrow(table, day, empty.column_names) if written else iter(())
    found = [shard.filter(pc.is_in(shard[column], wanted)).cast(empty.schema) for shard in shards]
    return pa.concat_tables([empty, *found]).to_pandas().assign(day=day)


def _acknowledged(day: str, sent: pd.DataFrame, ledger: Ledger) -> list[str]:
    """The ids, of a day's rows of `events`, that the ledger has as delivered."""
    ulids: list[str] = sent["ulid"].tolist()
    if not ulids:
        return []
    taken = are_delivered(ledger.delivered(day), pack_ids(ulids))
    return [ulid for ulid, is_taken in zip(ulids, taken, strict=True) if is_taken]
