"""The rules (docs/rules.md) read one event at a time, with plain dictionaries: what the tables of the days must hold.

It shares nothing with `cio_pipeline.rules` but the options, and is slow. The tests compare the product with it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from cio_pipeline.rules.options import Options

RESERVED = {"id", "cio_id", "identifier", "anonymous_id", "_update", "_timestamp"}
RESERVED |= {"_created_in_customerio_at", "cio_relationships"}
REDIRECTING = {"recipient", "from_address", "reply_to"}
NOBODYS_IN_ANY_CASE = ["anonymous", "guest", "distinctid", "distinct_id", "id", "not_authenticated", "email", "undefined"]
NOBODYS_IN_ANY_CASE += ["true", "false"]
NOBODYS = ["[object Object]", "NaN", "None", "none", "null", "0"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
YEAR_10000 = 253_402_300_800_000_000
ATOM = r'[^<>()\[\]\\.,;:\s\ufeff@"]+'
LOCAL = rf'({ATOM}(\.{ATOM})*|"[^\n\r\u2028\u2029]+")'
EMAIL = re.compile(LOCAL + r"@(([a-z0-9-]+\.)+[a-z]{2,}|\[([0-9]{1,3}\.){3}[0-9]{1,3}\])")
ISO = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(?:(:\d\d)(?:\.\d+)?)?(Z|[+-]\d\d:\d\d)?)?", re.ASCII)
UUID = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
LEFT_OUT = object()

Reject = tuple[str, str, str]
"""(uuid, `attribute` or `data`, name)."""


class Event(NamedTuple):
    """An event as it is extracted: `at` in microseconds since 1970, the properties as JSON text, the person's only where
    they are to be taken instead of `$set`."""

    at: int
    uuid: str
    name: str
    distinct_id: str
    properties: str | None = "{}"
    person_properties: str | None = None

    @property
    def day(self) -> str:
        return str((EPOCH + timedelta(microseconds=self.at)).date())

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """What makes it the event it is."""
        return self.day, self.name, self.distinct_id, self.uuid.lower()


class Sending(NamedTuple):
    """An event that goes out: in which partition, and as whose."""

    event: Event
    day: str
    distinct_id: str
    key: str
    email: str | None
    email_set_at: int


@dataclass
class Expected:
    """customers: (day, key) to name to (value, Unix seconds). events: day to what goes out, in no order.

    outcomes: an event's identity to (`sent`, `filtered` or `refused`, the partition in which). rejects: day to what was left
    out or changed, a row for each time.
    """

    customers: dict[tuple[str, str], dict[str, tuple[Any, int]]] = field(default_factory=dict)
    events: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    outcomes: dict[tuple[str, ...], tuple[str, str]] = field(default_factory=dict)
    rejects: dict[str, Counter[Reject]] = field(default_factory=lambda: defaultdict(Counter))


def expected(events: list[Event], start: str, options: Options) -> Expected:
    """What the partitions from `start` on must hold; the events before it are the history."""
    result = Expected()
    last: dict[tuple[str, str], str] = {}
    for sending in sorted(classify(events, start, options, result.outcomes), key=lambda sending: sending.event[:4]):
        event = sending.event
        properties = sendable(event.properties)
        made = None if properties is None else as_event(sending, properties, options)
        result.outcomes[event.identity] = ("refused" if made is None else "sent", sending.day)
        if made is None or properties is None:
            continue
        result.events[sending.day].append(made)
        customer = result.customers.setdefault((sending.day, sending.key), {})
        last[sending.day, sending.key] = event.uuid
        made_of, rejects = attributes(sending, properties, options)
        for name, value in made_of.items():
            at = sending.email_set_at if name == "email" else event.at
            if name not in customer or customer[name][1] <= at:
                customer[name] = (value, at)
        rejects += [("data", name) for name in changed(sendable(event.properties, as_it_is=True)) if name not in SPECIAL]
        if not options.allow_delivery_overrides:
            rejects += [("data", name) for name in properties if name.lower() in REDIRECTING]
        result.rejects[sending.day].update((event.uuid, *row) for row in rejects)
    for key, customer in result.customers.items():
        first = [name for name in ["email", "identifier", "created_at"] if name in customer]  # R10
        first += [name for name in customer if is_consent(name)]
        names = first + [name for name in customer if name not in first]
        result.customers[key] = {name: (customer[name][0], customer[name][1] // 1_000_000) for name in names[:300]}
        result.rejects[key[0]].update((last[key], "attribute", name) for name in names[300:])
    return result


def classify(
    events: list[Event], start: str, options: Options, outcomes: dict[tuple[str, ...], tuple[str, str]]
) -> list[Sending]:
    """Tells what becomes of each event, and gives those that go out if their data can."""
    known = Known(options)
    held_back: dict[str, list[Event]] = defaultdict(list)
    sendings: list[Sending] = []
    for event in sorted(events, key=lambda event: event[:4]):
        known.learn(event)
        if event.day < start:  # R18
            continue
        sendings += stitched(event, known, held_back, options)
        listed = not options.event_allowlist or event.name in options.event_allowlist  # R3
        outcome = "sent"
        if event.name in ("$create_alias", "$groupidentify") or not listed:  # R4
            outcome = "filtered"
        elif is_refused(event):
            outcome = "refused"
        elif not known.passes(event, event.distinct_id):
            outcome = "filtered"
            held_back[event.distinct_id].append(event)
        elif options.day_is_open and options.identify_by_email and known.email_of(event.distinct_id) is None:  # R22
            outcome = "filtered"
        else:
            sendings.append(known.sending(event, event.day, event.distinct_id))
        outcomes[event.identity] = (outcome, event.day)
    return sendings


class Known:
    """R1: what is known so far."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.identified: set[str] = set()
        self.emails: dict[str, tuple[str, int]] = {}

    def learn(self, event: Event) -> None:
        if event.person_properties is not None:
            given: Any = readable(event.person_properties)
        else:
            given = readable(event.properties).get("$set")
        email = given.get("email") if isinstance(given, dict) else None
        if is_usable(event.distinct_id) and is_email(email):
            self.emails[event.distinct_id] = (str(email), event.at)
        if is_usable(event.distinct_id) and event.name == "$identify":
            self.identified.add(event.distinct_id)

    def email_of(self, who: str) -> str | None:
        return self.emails[who][0] if who in self.emails else who if is_email(who) else None

    def passes(self, event: Event, who: str) -> bool:
        """R5: whether this event is sent as that distinct_id's."""
        choices = {
            "all": True,
            "profiles": not is_personless(event),
            "identified": who in self.identified,
            "emails": self.email_of(who) is not None,
        }
        return choices[self.options.anonymous_users]

    def sending(self, event: Event, day: str, who: str) -> Sending:
        """R6, and when the email was set that R7 adds."""
        own = who if is_email(who) else None
        email = self.email_of(who) if self.options.identify_by_email else own
        key = f"id:{who}" if email is None else f"email:{email.lower()}"
        email_set_at = event.at if key.startswith("email:") else self.emails.get(who, ("", event.at))[1]
        return Sending(event, day, who, key, self.email_of(who), min(email_set_at, event.at))


def stitched(event: Event, known: Known, held_back: dict[str, list[Event]], options: Options) -> list[Sending]:
    """R16: the held-back events that this one takes. What it could have taken is nobody else's."""
    who = event.distinct_id
    anonymous_id: Any = readable(event.properties).get("$anon_distinct_id")
    can = is_usable(who) and isinstance(anonymous_id, str) and is_usable(anonymous_id)
    if event.name != "$identify" or not can or not UUID.fullmatch(event.uuid) or anonymous_id in known.identified:
        return []
    since = event.at - options.stitch_anonymous_days * 86_400_000_000
    waiting = [earlier for earlier in held_back.pop(anonymous_id, []) if earlier.at >= since]
    may = options.stitch_anonymous_days > 0 and not options.day_is_open and known.passes(event, who)
    return [known.sending(earlier, event.day, who) for earlier in waiting if may]


SPECIAL = ("$set", "$set_once", "$unset")


def as_event(sending: Sending, properties: dict[str, Any], options: Options) -> dict[str, Any] | None:
    """R12 to R14: what goes out of an event; None where it is refused."""
    event, (kind, identifier) = sending.event, sending.key.split(":", 1)
    data = {name: value for name, value in properties.items() if name not in SPECIAL}
    if not options.allow_delivery_overrides:
        data = {name: value for name, value in data.items() if name.lower() not in REDIRECTING}
    action = {"$pageview": "page", "$screen": "screen"}.get(event.name, "event")
    made = {"id": ulid(event), "name": event.name.strip(), "timestamp": event.at // 1_000_000}
    item = {**made, "type": "person", "action": action, "identifiers": {kind: identifier}, "attributes": data}
    call = "batch" if size(item) <= 32_000 else "event"
    as_email = kind == "email" and not re.search(r'[\s"]', identifier)
    not_in_a_path = identifier in (".", "..") or identifier.startswith("cio_") or ("@" in identifier) != as_email
    if size(data) > 100_000 or (call == "event" and not_in_a_path):
        return None
    return {**made, "key": sending.key, "type": action, "call": call, "data": data, "personless": is_personless(event)}


def attributes(sending: Sending, properties: dict[str, Any], options: Options) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """R7 to R11 and R19: what an event sets (None clears), and which of its attributes `rejects` lists."""
    event = sending.event
    rejects: list[str] = []
    given, raw_unset = properties.get("$set"), sendable(event.properties, as_it_is=True).get("$unset")  # type: ignore[union-attr]
    raw_given: Any = sendable(event.properties, as_it_is=True).get("$set")  # type: ignore[union-attr]
    if event.person_properties is not None:
        given, raw_given = sendable(event.person_properties), sendable(event.person_properties, as_it_is=True)
        rejects += ["person_properties"] if given is None else []
    given = given if isinstance(given, dict) else {}

    def excluded(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in options.exclude_attributes)

    rejects += [name for name in changed(raw_given) if not excluded(name)]
    if isinstance(raw_unset, (list, dict)):
        mended = {mend(name) for name in raw_unset if isinstance(name, str) and mend(name) != name}
        kept = {name for name in raw_unset if isinstance(name, str) and mend(name) == name}
        rejects += [name for name in mended - kept if not excluded(name)]
    made: dict[str, Any] = {}
    for name, value in given.items():
        if not excluded(name):
            passed, all_of_it = consent(name, value, options)
            rejects += [] if all_of_it else [name]
            for passed_name, passed_value in passed.items():
                one, is_whole = attribute(passed_name, passed_value)
                left_out = excluded(passed_name)
                rejects += [] if is_whole or left_out else [passed_name]
                made.update({} if one is LEFT_OUT or left_out else {passed_name: one})
    unset = properties.get("$unset")
    for name in unset if isinstance(unset, (list, dict)) else []:
        if isinstance(name, str) and not excluded(name):
            clears = (not is_consent(name) or options.allow_consent == "Yes") and name not in RESERVED and size(name) <= 150
            clears = clears and name != "email"
            rejects += [] if clears else [name]
            made.update({name: None} if clears else {})
    added = sending.key.split(":", 1)[1] if sending.key.startswith("email:") else sending.email
    made.update({} if added is None else {"email": added})  # R7: in place of a given one
    made["identifier"] = sending.distinct_id
    rows = [("attribute", name) for name in rejects]
    return {name: value for name, value in made.items() if value is not LEFT_OUT}, rows


def is_consent(name: str) -> bool:
    """R19."""
    meant = name.strip().lower()
    return meant.split(".")[0] == "cio_subscription_preferences" or meant == "unsubscribed"


def consent(name: str, value: Any, options: Options) -> tuple[dict[str, Any], bool]:
    """R19: what passes of an attribute, and whether that is all of it."""
    if not is_consent(name) or options.allow_consent == "Yes":
        return {name: value}, True
    meant = name.strip().lower()
    passed: dict[str, Any] = {}
    rest = True
    if options.allow_consent == "No":
        pass
    elif meant == "unsubscribed":
        rest = json.dumps(value).lower() not in ("true", "1", "1.0", '"true"', '"1"')
        passed = {} if rest else {name: value}
    elif meant == "cio_subscription_preferences":
        topics = value.get("topics") if isinstance(value, dict) else None
        if isinstance(topics, dict):
            passed = {f"{meant}.topics.{topic}": False for topic, wanted in topics.items() if wanted is False and topic}
            rest = not passed or len(passed) < len(topics) or list(value) != ["topics"]
    elif re.fullmatch(r"cio_subscription_preferences\.topics\..+", meant, re.DOTALL) and value is False:
        passed, rest = {name: value}, False
    return passed, not rest


def attribute(name: str, value: Any) -> tuple[Any, bool]:
    """R2 and R8 to R10: the value that is sent, or LEFT_OUT, and whether `rejects` does not list it."""
    if name in RESERVED or size(name) > 150:
        return LEFT_OUT, False
    if name == "email":
        return (value, True) if is_email(value) else (LEFT_OUT, False)
    if name == "created_at":
        value = unix_seconds(value)
    if value is LEFT_OUT:
        return LEFT_OUT, False
    if isinstance(value, str):
        return value.encode()[:1000].decode(errors="ignore"), size(value) <= 1000
    return (LEFT_OUT, False) if size(value) > 1000 else (value, True)


def unix_seconds(value: Any) -> Any:
    """R9."""
    digits = re.fullmatch(r"([0-9]{9,13})(\..*)?", f"{value:.9f}" if isinstance(value, float) else str(value))
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if digits and (is_number or (isinstance(value, str) and not digits[2])):
        number = float(value) if isinstance(value, float) else int(digits[1])
        return int(number // 1000 if number > 1e11 else number)
    found = ISO.fullmatch(value) if isinstance(value, str) else None
    try:
        date, minutes, seconds, zone = found.groups(default="") if found else ("", "", "", "")
        moment = datetime.fromisoformat(f"{date}T{minutes or '00:00'}{seconds}{zone.replace('Z', '') or '+00:00'}")
        return int(moment.timestamp())
    except ValueError:
        return LEFT_OUT


def is_email(value: Any) -> bool:
    """R2."""
    return isinstance(value, str) and EMAIL.fullmatch(value.lower()) is not None and size(value) <= 1000


def is_personless(event: Event) -> bool:
    """R5."""
    return readable(event.properties).get("$process_person_profile") is False


def is_refused(event: Event) -> bool:
    """R14, as far as it can be told without the data."""
    name = event.name.strip()
    is_event = 1 <= size(name) <= 100 and UUID.fullmatch(event.uuid) and 0 <= event.at < YEAR_10000
    return not (is_event and is_usable(event.distinct_id))


def is_usable(distinct_id: str) -> bool:
    """R14."""
    in_any_case = [quote + name + quote for quote in ("", "'", '"') for name in NOBODYS_IN_ANY_CASE]
    as_it_is = [quote + name + quote for quote in ("", "'", '"') for name in NOBODYS]
    nobodys = distinct_id.lower() in in_any_case or distinct_id in as_it_is
    return distinct_id.strip() != "" and size(distinct_id) <= 150 and not nobodys


def ulid(event: Event) -> str:
    """R12."""
    days = event.at // 86_400_000_000
    text = f"{days} {event.uuid.lower()} {len(event.name)} {event.name}{event.distinct_id}"
    end = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=10).digest(), "big")
    bits = int(event.uuid.replace("-", "")[:12], 16) << 80 | end
    return "".join("0123456789ABCDEFGHJKMNPQRSTVWXYZ"[bits >> shift & 31] for shift in range(125, -1, -5))


def readable(text: str | None) -> dict[str, Any]:
    """The object in the text, halves of surrogate pairs mended; an empty one where there is none, or it is too deep."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return mend(value) if isinstance(value, dict) and depth(value) <= 200 else {}


def sendable(text: str | None, as_it_is: bool = False) -> dict[str, Any] | None:
    """The object in the text; None where there is none, it is too deep, or holds what JSON cannot express."""
    try:
        value = json.loads(text or "{}")
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or depth(value) > 200:
        return None
    return value if as_it_is else mend(value)


def depth(value: Any) -> int:
    """How many levels of objects and arrays there are."""
    if not isinstance(value, (dict, list)):
        return 0
    return 1 + max((depth(item) for item in (value.values() if isinstance(value, dict) else value)), default=0)


def mend(value: Any) -> Any:
    """Halves of surrogate pairs as U+FFFD."""
    if isinstance(value, dict):
        return {mend(name): mend(item) for name, item in value.items()}
    if isinstance(value, list):
        return [mend(item) for item in value]
    halves = (
        (("\ufffd" if "\ud800" <= character <= "\udfff" else character) for character in value)
        if isinstance(value, str)
        else ""
    )
    return "".join(halves) if isinstance(value, str) else value


def changed(found: Any) -> list[str]:
    """The names, mended, of what mending changes."""
    if not isinstance(found, dict):
        return []
    return [mend(name) for name, value in found.items() if json.dumps([name, value]) != json.dumps(mend([name, value]))]


def size(value: Any) -> int:
    """Bytes of UTF-8: of text as it is, of anything else as compact JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return len(text.encode())
