"""People who asked to be forgotten: CIO_SUPPRESSED_FILE names them, and nothing of theirs is sent."""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import sha256
from typing import Any

import pandas as pd
import requests
from upath import UPath

from cio_pipeline.connector.jsontext import read_object
from cio_pipeline.customerio.client import NotDelivered

HASH = re.compile(r"[0-9a-fA-F]{64}")
TIMEOUT_SECONDS = 60


class Suppressed:
    """Distinct_ids and emails, plain or as SHA-256 in hex: of the exact distinct_id, of the trimmed, lower-cased email."""

    def __init__(self, lines: Iterable[str] = ()) -> None:
        self._lines = given = [line.strip() for line in lines]
        self._ids = frozenset(line for line in given if line)
        self._emails = frozenset(line.lower() for line in given if "@" in line)
        self._hashes = frozenset(line.lower() for line in given if HASH.fullmatch(line))

    def __bool__(self) -> bool:
        return bool(self._ids)

    def names(self, text: Any) -> bool:
        """Whether the list names this distinct_id or email."""
        if not isinstance(text, str):
            return False
        email = text.strip().lower()
        if text in self._ids or text.strip() in self._ids or email in self._emails:
            return True
        return bool(self._hashes) and (_hash(text) in self._hashes or _hash(email) in self._hashes)

    def also(self, distinct_ids: Iterable[str]) -> Suppressed:
        """The list with these distinct_ids."""
        return Suppressed([*self._lines, *distinct_ids])

    def keys(self, customers: pd.DataFrame, events: pd.DataFrame) -> set[str]:
        """The keys of a day's tables whose customers the list names, or one of the distinct_ids behind an email they share."""
        if not self:
            return set()
        pairs = zip(customers["key"].tolist(), customers["operation"].tolist(), strict=True)
        named = {key for key, operation in pairs if self.names_customer(key, operation)}
        behind = events[["key", "distinct_id"]].drop_duplicates()
        return named | set(behind.loc[behind["distinct_id"].map(self.names).astype(bool), "key"])

    def names_customer(self, key: str, operation: str) -> bool:
        """Whether the list names the customer of an operation: by the key, and of an upsert by `identifier` or `email`."""
        given = read_object(operation)
        attributes = given["attributes"] if given.get("action") == "identify" else {}
        texts = (key.partition(":")[2], attributes.get("identifier"), attributes.get("email"))
        return any(map(self.names, texts))


def read_suppressed(location: str | None) -> Suppressed:
    """The list at a path or URL, one distinct_id or email a line. Raises `NotDelivered` where it cannot be read."""
    if not location:
        return Suppressed()
    try:
        if location.startswith(("http://", "https://")):
            answer = requests.get(location, timeout=TIMEOUT_SECONDS)
            answer.raise_for_status()
            content = answer.content
        else:
            content = UPath(location).read_bytes()
        return Suppressed(content.decode("utf-8-sig").splitlines())
    except Exception as trouble:
        # Whatever a file system raises: it may quote the URL, which may hold a password.
        raise NotDelivered(f"CIO_SUPPRESSED_FILE cannot be read ({type(trouble).__name__}): nothing is sent.") from None


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()
