"""The columns of the tables for their pages: type, description, whether they are personal data, and where they come from."""

from collections.abc import Mapping

import dagster as dg
import pyarrow as pa

from cio_pipeline.defs.asset_keys import asset_key
from cio_pipeline.posthog.source import EVENT_SCHEMA
from cio_pipeline.rules.customers import CUSTOMERS
from cio_pipeline.rules.operations import EVENTS, REJECTS

TYPES = {"large_string": "string", "large_binary": "bytes", "timestamp[us, tz=UTC]": "timestamp"}
PERSONAL = {"personal_data": "true"}

POSTHOG_COLUMNS = {
    "uuid": "The event's id in PostHog.",
    "event": "Its name.",
    "distinct_id": "Who did it.",
    "timestamp": "When, in UTC.",
    "created_at": "When PostHog ingested it: of several copies the last one counts.",
    "properties": "Its properties, as JSON.",
    "person_properties": "The person's properties, as JSON, if they are used instead of $set (R20); otherwise null.",
}
CUSTOMER_COLUMNS = {
    "key": "The customer in Customer.io: id:, or email:, and the value.",
    "part": "0, or more if the attributes are too large for one upsert.",
    "attributes": "The number of attributes that the upsert sets.",
    "timestamp": "When the newest of them was set, in UTC.",
    "operation": "The upsert as JSON. A delivery may leave attributes out of it, or give it a later time (R17, R19).",
    "state": "Hashes of the attributes with their times, which the ledger keeps once the upsert is accepted (R17).",
    "identifier": "The distinct_id of the last event.",
    "email": "The customer's email, if there is one.",
    "consent": "Whether an attribute is about consent (R19).",
}
EVENT_COLUMNS = {
    "uuid": "The event's id in PostHog.",
    "ulid": "Its id in Customer.io, which ignores a second copy (R12).",
    "key": "The customer that it goes to: id:, or email:, and the value.",
    "distinct_id": "Who did it, as PostHog has it.",
    "name": "Its name.",
    "type": "What Customer.io calls it: event, page or screen.",
    "timestamp": "When it happened, in UTC.",
    "call": "How it is sent: batch, or event (the v1 event call) if it is too large for a batch.",
    "operation": "The event, as the JSON that is sent.",
    "personless": "Whether PostHog keeps no person for it (R5).",
}
REJECT_COLUMNS = {
    "uuid": "The event's id in PostHog.",
    "distinct_id": "Who did it.",
    "event": "The event's name.",
    "timestamp": "When it happened, in UTC.",
    "what": "What is left out: event, attribute or data (a property).",
    "name": "Its name.",
    "reason": "Why, with the rule's number in docs/rules.md.",
}
IDENTITY_COLUMNS = {
    "distinct_id": "Who.",
    "identified": "Whether they have had an $identify.",
    "email": "The last valid email that was set.",
    "email_set_at": "When, in microseconds since 1970.",
    "anonymous_id": "An anonymous id that was theirs before they were identified (R16).",
}
DRY_RUN_COLUMNS = {
    "day": "The day, or all of them together.",
    "events read": "The number of the day's events in PostHog.",
    "filtered": "The number of these that the settings leave out.",
    "refused by the rules": "The number that the rules refuse.",
    "events to send": "The number that would be sent.",
    "new customers": "The number of customers that Customer.io would create.",
    "events under 72 hours": "The number of these events that can start campaigns.",
    "customers changed": "The number of customers with attributes to send.",
    "events delivered before": "The number of events that Customer.io already has.",
    "requests": "The number of requests that this takes.",
}
EXPLAINED_COLUMNS = {
    "time": "When the event happened, in UTC.",
    "event": "Its name.",
    "distinct_id": "Who did it, masked.",
    "outcome": "Sent, filtered, suppressed, refused or not derived yet.",
    "reason": "Why, with the rule's number in docs/rules.md.",
    "key": "The customer that it went to, masked.",
    "acknowledged": "Whether Customer.io has accepted it.",
}
PERSONAL_COLUMNS = {
    *("distinct_id", "anonymous_id", "properties", "person_properties", "key", "operation", "identifier", "email"),
    *("identifiers", "person's attributes", "person's events"),
}

IDENTIFIED_BY = ("distinct_id", "properties", "person_properties")
SAME = {name: (name,) for name in ("uuid", "distinct_id", "event", "timestamp")}
COMES_FROM: dict[str, dict[str, tuple[str, ...]]] = {
    "customers": {
        **dict.fromkeys(("key", "identifier", "email"), IDENTIFIED_BY),
        **dict.fromkeys(("part", "attributes", "state", "consent"), ("properties", "person_properties")),
        "timestamp": ("timestamp",),
        "operation": (*IDENTIFIED_BY, "timestamp"),
    },
    "events": {
        **{name: SAME[name] for name in ("uuid", "distinct_id", "timestamp")},
        "ulid": ("uuid", "event", "distinct_id", "timestamp"),
        "key": IDENTIFIED_BY,
        **dict.fromkeys(("name", "type"), ("event",)),
        **dict.fromkeys(("call", "operation"), ("uuid", "event", *IDENTIFIED_BY, "timestamp")),
        "personless": ("properties",),
    },
    "rejects": {**SAME, **dict.fromkeys(("what", "name", "reason"), ("event", *IDENTIFIED_BY))},
}
"""The columns of `posthog_events` from which each column of the derived tables is made."""


def schema(fields: pa.Schema, descriptions: Mapping[str, str]) -> dg.TableSchema:
    """Returns the columns of a stored table as Dagster shows them."""
    return table_schema(descriptions, {field.name: TYPES.get(str(field.type), str(field.type)) for field in fields})


def table_schema(descriptions: Mapping[str, str], types: Mapping[str, str] | None = None) -> dg.TableSchema:
    """Returns these columns with their descriptions, in order; personal ones are tagged."""
    types = types or dict.fromkeys(descriptions, "string")
    tags = {name: PERSONAL if name in PERSONAL_COLUMNS else None for name in types}
    return dg.TableSchema([dg.TableColumn(name, kind, descriptions[name], tags=tags[name]) for name, kind in types.items()])


def lineage(table: str) -> dg.TableColumnLineage:
    """Returns the columns that each column of a derived table comes from."""
    events = asset_key("posthog_events")
    return dg.TableColumnLineage(
        {name: [dg.TableColumnDep(events, column) for column in columns] for name, columns in COMES_FROM[table].items()}
    )


SCHEMAS = {
    "posthog_events": schema(EVENT_SCHEMA, POSTHOG_COLUMNS),
    "customers": schema(CUSTOMERS, CUSTOMER_COLUMNS),
    "events": schema(EVENTS, EVENT_COLUMNS),
    "rejects": schema(REJECTS, REJECT_COLUMNS),
    "identity_history": schema(EVENT_SCHEMA, POSTHOG_COLUMNS),
    "identities": table_schema(IDENTITY_COLUMNS),
}
