"""A day's receipt in one line, for the log."""

from collections.abc import Mapping
from typing import Any

ALWAYS = ("events sent", "customers sent", "events delivered before", "customers with nothing new", "refused", "requests")
WHERE_ANY = (
    "events held as too recent",
    "customers beyond the limit",
    "events beyond the limit",
    "customers suppressed",
    "events suppressed",
)
"""What was left out on purpose."""

WORDS = {"refused": "refused by Customer.io"}


def in_one_line(receipt: Mapping[str, Any]) -> str:
    """`3 events sent, 2 customers sent, ...`, of the receipt that `deliver.receipt_of` makes."""
    names = [*ALWAYS, *(name for name in WHERE_ANY if receipt.get(name))]
    return ", ".join(f"{receipt.get(name, 0):,} {WORDS.get(name, name)}" for name in names)
