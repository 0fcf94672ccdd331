"""R14: which distinct_ids are somebody's, and can be sent."""

from __future__ import annotations

ID_BYTES = 150
"""Customer.io's limit for a person's id (Track API, OpenAPI)."""


def _quoted_too(*names: str) -> frozenset[str]:
    return frozenset(quote + name + quote for quote in ("", "'", '"') for name in names)


NOBODYS_IN_ANY_CASE = _quoted_too(
    "anonymous", "guest", "distinctid", "distinct_id", "id", "not_authenticated", "email", "undefined", "true", "false"
)
NOBODYS = _quoted_too("[object Object]", "NaN", "None", "none", "null", "0")
"""Ids that PostHog merges with nobody's (its person-merge code): what a faulty client sends where it knows nobody."""


def is_nobodys(distinct_id: str) -> bool:
    """Whether many people are behind this id."""
    return distinct_id in NOBODYS or distinct_id.lower() in NOBODYS_IN_ANY_CASE


def is_blank(distinct_id: str) -> bool:
    """Whether there is nothing in this id but spaces."""
    return not distinct_id or distinct_id.isspace()


def usable(distinct_id: str) -> bool:
    """Whether R14 takes this id: neither blank, nor over 150 bytes, nor nobody's."""
    return not is_blank(distinct_id) and len(distinct_id.encode()) <= ID_BYTES and not is_nobodys(distinct_id)
