"""R12 and R13: an event's data in Customer.io, from its properties; and the attributes that it gives its customer (R7).

The properties of most events are sent as they are (`properties.PARSED_COLUMNS`). From most others, `$set` and the like are cut
out as text. Only the remaining ones are parsed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.json_text import TOO_DEEP, UnusableJson, is_too_deep, read_object, repair_surrogates, write
from cio_pipeline.rules.attributes import EXCLUDED, LeftOut, WhyLeftOut, unset_names
from cio_pipeline.rules.columns import Bools, to_list
from cio_pipeline.rules.options import Options
from cio_pipeline.rules.properties import members_of, value_of, without_members

REPAIRED = "half a surrogate pair became U+FFFD"
REDIRECTS = "would change an email's recipient or sender (R13)"
NOT_DATA = frozenset({"$set", "$set_once", "$unset"})
"""R12: properties that are not part of the event's data."""

DELIVERY_OVERRIDES = frozenset({"recipient", "from_address", "reply_to"})


class Findings(NamedTuple):
    """The parts of an event's JSON that are not its data.

    given: the given attributes; attributes_left_out: those of them that were left out or repaired, and why; unset: the value
    of `$unset`; data_left_out: the properties that were left out or repaired, and why.
    """

    given: dict[str, Any]
    attributes_left_out: LeftOut
    unset: Any
    data_left_out: LeftOut


class EventData(NamedTuple):
    """The data of several events: JSON in UTF-8, null where it cannot be sent; and, by row, why it cannot,
    and what else the JSON holds, if anything."""

    json: pa.LargeBinaryArray
    refused: dict[int, str]
    findings: dict[int, Findings]


def read_event_data(
    contents: pa.LargeBinaryArray,
    persons: pa.LargeBinaryArray,
    canonical: Bools,
    sent_as_is: Bools,
    why_left_out: WhyLeftOut,
    options: Options,
) -> EventData:
    """Returns the data of the events with these properties.

    contents: the properties; persons: the person's properties where these are used instead of `$set`, else null; both are JSON
    in UTF-8. canonical, sent_as_is: as in `properties.PARSED_COLUMNS`.
    """
    data: list[bytes | None] = []
    refused: dict[int, str] = {}
    findings: dict[int, Findings] = {}
    changes = ~sent_as_is | persons.is_valid().to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(changes)
    chosen = [array.take(pa.array(rows)) for array in (contents, persons)]
    for row, content, person, is_canonical in zip(rows.tolist(), *map(to_list, chosen), canonical[rows].tolist(), strict=True):
        cut = _cut(content, person, why_left_out) if is_canonical else None
        try:
            written, findings[row] = cut or _parse(content, person, why_left_out, options)
        except UnusableJson as reason:
            written, refused[row] = None, f"{reason} (R14)"
        data.append(written)
    whole = pc.replace_with_mask(contents, pa.array(changes), pa.array(data, contents.type)) if data else contents
    return EventData(whole, refused, findings)


def _cut(content: bytes, person: bytes | None, why_left_out: WhyLeftOut) -> tuple[bytes, Findings] | None:
    """Returns the data, and what else the JSON holds, by cutting it out of canonical JSON; None if that has to be parsed."""
    members = members_of(content)
    written = None if members is None else without_members(content, members)
    if members is None or written is None:
        return None
    if person is not None:
        return written, Findings(*_person_attributes(person, why_left_out), value_of(members.unset), [])
    given = value_of(members.given)
    return written, Findings(given if isinstance(given, dict) else {}, [], value_of(members.unset), [])


def _parse(content: bytes | None, person: bytes | None, why_left_out: WhyLeftOut, options: Options) -> tuple[bytes, Findings]:
    raw = _read_sendable(content)
    properties, repaired = repair_surrogates(content or b"", raw)
    unset = properties.get("$unset")
    if person is not None:
        given, attributes = _person_attributes(person, why_left_out)
    else:
        raw_set = raw.get("$set")
        given, changed = repair_surrogates(content or b"", raw_set if isinstance(raw_set, dict) else {})
        attributes = _repaired(changed, why_left_out)
    if "$unset" in repaired:
        unchanged = set(unset_names(raw["$unset"]))
        changed = [name for name in dict.fromkeys(unset_names(unset)) if name not in unchanged]
        attributes = attributes + _repaired(changed, why_left_out)
    overrides = [] if options.allow_delivery_overrides else [name for name in properties if name.lower() in DELIVERY_OVERRIDES]
    data = {name: value for name, value in properties.items() if name not in NOT_DATA and name not in overrides}
    left_out = [(name, REPAIRED) for name in repaired if name not in NOT_DATA] + [(name, REDIRECTS) for name in overrides]
    return write(data), Findings(given, attributes, unset, left_out)


def _person_attributes(person: bytes, why_left_out: WhyLeftOut) -> tuple[dict[str, Any], LeftOut]:
    """R7: the attributes that the person's properties give, and those left out or repaired; none if they cannot be read."""
    try:
        given, changed = repair_surrogates(person, _read_sendable(person))
    except UnusableJson as reason:
        return {}, [("person_properties", f"{reason} (R7)")]
    return given, _repaired(changed, why_left_out)


def _repaired(changed: list[str], why_left_out: WhyLeftOut) -> LeftOut:
    return [(name, REPAIRED) for name in changed if why_left_out(name) != EXCLUDED]


def _read_sendable(content: bytes | None) -> dict[str, Any]:
    value = read_object(content)
    if content and is_too_deep(content, value):
        raise UnusableJson(TOO_DEEP)
    return value
