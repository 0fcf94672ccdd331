"""The names of what a delivery counts, as receipts, reports and logs show them."""

from collections.abc import Mapping

EVENTS_SENT = "events sent"
UPSERTS_SENT = "upserts sent"
NEW_CUSTOMERS = "new customers"
ONLY_PERSONLESS = "new customers with nothing but personless events"
CAMPAIGN_EVENTS = "events under 72 hours"

EVENTS_DELIVERED_BEFORE = "events delivered before"
UPSERTS_WITH_NOTHING_NEW = "upserts with nothing new"
NEWER_ATTRIBUTES = "attributes newer in Customer.io"
ALL_ATTRIBUTES_NEWER = "upserts whose attributes are all newer in Customer.io"
CONSENT_LEFT_OUT = "attributes about consent left out (R19)"

CUSTOMERS_BEYOND_LIMIT = "customers beyond the limit"
EVENTS_BEYOND_LIMIT = "events beyond the limit"
CUSTOMERS_SUPPRESSED = "customers suppressed"
EVENTS_SUPPRESSED = "events suppressed"
EVENTS_TOO_RECENT = "events held as too recent"
LEFT_FOR_ANOTHER_RUN = "left for another run"
"""The upserts and events of the day that the run has left for another one, because of `limit` or `hold_recent_events`. It is in
a receipt only if it is not 0: the day is then not delivered completely (`delivered_days`)."""
PEOPLE_LISTED = "people that the suppression list names"

REFUSALS_CLOSED = "refusals closed by newer data"
REFUSALS_SUPPRESSED = "refusals suppressed"
REFUSALS_GONE = "refusals no longer to be sent"
REFUSALS_CHANGED = "refusals that a run of the day sends"

EVENTS_TO_SEND = "events to send"
UPSERTS_TO_SEND = "upserts to send"
CHANGED_CUSTOMERS = "customers changed"

_REFUSED, _REFUSED_BEFORE = "refused: ", "refused before: "


def refused_because(reason: str) -> str:
    """Returns the name of the count of items that Customer.io has refused for this reason."""
    return _REFUSED + reason


def refused_before(reason: str) -> str:
    """Returns the name of the count of items that were not sent because it has refused them for this reason before."""
    return _REFUSED_BEFORE + reason


def all_refused(counts: Mapping[str, int]) -> int:
    """Returns how many items were refused, now or before, for any reason."""
    return sum(count for name, count in counts.items() if name.startswith((_REFUSED, _REFUSED_BEFORE)))


def all_refused_before(counts: Mapping[str, int]) -> int:
    """Returns how many items were refused before, for any reason."""
    return sum(count for name, count in counts.items() if name.startswith(_REFUSED_BEFORE))
