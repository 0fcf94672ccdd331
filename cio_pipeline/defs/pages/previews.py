"""A few rows of a table for its page in Dagster's UI, with the JSON as it is sent, except that every value is masked."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg
import orjson

from cio_pipeline.customerio.sample import mask_key
from cio_pipeline.defs.pages.tables import Row, table
from cio_pipeline.json_text import read_object
from cio_pipeline.masking import mask, printable
from cio_pipeline.tables.tables import Tables

ROWS, NAMES, DEEP = 5, 12, 3
"""The number of rows that are shown of a table, of names of an object, and of levels of objects."""

MORE = "…"
HIDDEN = "***"

AS_IT_IS = ("type", "action", "timestamp", "id")
"""The members of an operation that are not personal data: `id` is the event's."""

CUSTOMERS = ("key", "attributes", "timestamp", "operation")
EVENTS = ("key", "name", "timestamp", "operation")
REJECTS = ("what", "name", "reason", "event", "distinct_id", "timestamp")
POSTHOG_EVENTS = ("event", "distinct_id", "timestamp", "properties")


def preview(tables: Tables, name: str, day: str) -> dg.MetadataValue:
    """Returns the first rows of a day's table `customers`, `events`, `rejects` or `posthog_events`. Raises `StorageError`."""
    columns, row = SHOWN[name]
    return table([row(one) for one in tables.head(name, day, ROWS, list(columns))])


def masked_operation(text: str) -> str:
    """Returns an operation's JSON with all names, and the first character of each value: `"pro"` -> `"p***"`."""
    shown = dict[str, Any]()
    for name, value in read_object(text).items():
        if name == "name":
            shown[name] = mask(value)
        elif name == "identifiers":
            shown[name] = {kind: mask_key(f"{kind}:{who}").partition(" ")[2] for kind, who in value.items()}
        else:
            shown[name] = value if name in AS_IT_IS else masked(value)
    return _json(shown)


def masked(value: Any, deep: int = 0) -> Any:
    """Returns a JSON value masked: names and structure stay, texts and numbers are cut to their first character."""
    if value is None or isinstance(value, bool):
        return value
    if deep == DEEP and isinstance(value, dict | list):
        return MORE
    if isinstance(value, dict):
        shown = {mask(str(name)): masked(one, deep + 1) for name, one in list(value.items())[:NAMES]}
        return shown | ({MORE: f"{len(value) - NAMES} more"} if len(value) > NAMES else {})
    if isinstance(value, list):
        return [masked(one, deep + 1) for one in value[:1]] + ([MORE] if len(value) > 1 else [])
    text = str(value)
    if "@" in text:
        return mask(text)
    return printable(text[:1]) + HIDDEN if len(text) > 1 else HIDDEN


def _customer(row: Mapping[str, Any]) -> Row:
    return {
        "key": mask_key(row["key"]),
        "attributes": row["attributes"],
        "newest": _time(row),
        "operation, masked": masked_operation(row["operation"]),
    }


def _event(row: Mapping[str, Any]) -> Row:
    shown = {"time": _time(row), "key": mask_key(row["key"]), "name": mask(row["name"])}
    return {**shown, "operation, masked": masked_operation(row["operation"])}


def _reject(row: Mapping[str, Any]) -> Row:
    shown = {"what": row["what"], "name": mask(row["name"] or ""), "reason": row["reason"], "event": mask(row["event"] or "")}
    return {**shown, "distinct_id": _distinct_id(row), "time": _time(row)}


def _posthog_event(row: Mapping[str, Any]) -> Row:
    shown = {"time": _time(row), "distinct_id": _distinct_id(row), "event": mask(row["event"] or "")}
    return {**shown, "properties, masked": _properties(row["properties"])}


def _properties(text: str | None) -> str:
    try:
        return _json(masked(orjson.loads(text or "{}")))
    except orjson.JSONDecodeError:
        return "not JSON"


def _distinct_id(row: Mapping[str, Any]) -> str:
    return mask_key(f"id:{row['distinct_id'] or ''}").removeprefix("id ")


def _time(row: Mapping[str, Any]) -> str:
    return f"{row['timestamp']:%Y-%m-%d %H:%M:%S}"


def _json(value: Any) -> str:
    """Returns JSON with spaces, at which a page can break the line."""
    return json.dumps(value, ensure_ascii=False)


SHOWN: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Row]]] = {
    "customers": (CUSTOMERS, _customer),
    "events": (EVENTS, _event),
    "rejects": (REJECTS, _reject),
    "posthog_events": (POSTHOG_EVENTS, _posthog_event),
}
"""The columns to read of each table, and the function that turns a row into what is shown."""
