"""The look-ups in what the days say about people, as queries for a column of distinct_ids or emails."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from cio_pipeline.state.identity_tables import HISTORY_PARTITION, emails, identified, links, merges

END = "9999-99-99"
"""A day after all others."""


def known_before(day: str, wanted: sa.ColumnElement[str]) -> sa.Select[Any]:
    """Selects what is known before the day about each of these distinct_ids, if anything: distinct_id, identified, email, set.

    That is a few index look-ups for each of them, however many days there are.
    """
    was_identified = sa.exists().where(identified.c.distinct_id == wanted, identified.c.day < day)
    email, microseconds = (_of_last_email(column, wanted, day) for column in (emails.c.email, emails.c.microseconds))
    columns = (wanted.label("distinct_id"), was_identified.label("identified"), email.label("email"), microseconds.label("set"))
    rows = sa.select(*columns).subquery()
    return sa.select(rows).where(sa.or_(rows.c.identified, rows.c.email.is_not(None)))


def merges_between(first: str, day: str, wanted: sa.ColumnElement[str]) -> sa.Select[Any]:
    """Selects the merges of these anonymous ids from the day `first` on, and before `day`: `stitching.MERGE_COLUMNS`."""
    query = sa.select(merges.c.anonymous_id, merges.c.distinct_id, merges.c.microseconds, merges.c.uuid)
    return query.where(merges.c.anonymous_id == wanted, merges.c.day >= first, merges.c.day < day)


def identified_with(wanted: sa.ColumnElement[str]) -> sa.Select[Any]:
    """Selects each of these emails with the identified distinct_ids that are linked to it."""
    is_identified = sa.exists().where(identified.c.distinct_id == links.c.distinct_id)
    return sa.select(links.c.name, links.c.distinct_id).where(links.c.name == wanted, is_identified)


def last_emails(wanted: sa.ColumnElement[str]) -> sa.Select[Any]:
    """Selects each of these distinct_ids with its last email."""
    last = _of_last_email(emails.c.email, wanted, END)
    pairs = sa.select(wanted.label("distinct_id"), last.label("email")).subquery()
    return sa.select(pairs).where(pairs.c.email.is_not(None))


def _of_last_email(column: sa.Column[Any], wanted: sa.ColumnElement[str], before: str) -> sa.ScalarSelect[Any]:
    """Selects a column of the email that was set last before a day: that of the last day or, if it is later, of the history,
    which may reach up to a CIO_START_DATE that was moved."""
    others = emails.alias()
    before_it = sa.select(sa.func.max(others.c.day)).where(others.c.distinct_id == wanted, others.c.day < before)
    days = (before_it.correlate_except(others).scalar_subquery(), sa.literal(HISTORY_PARTITION))
    candidates = sa.select(column).where(emails.c.distinct_id == wanted, emails.c.day.in_(days))
    return candidates.order_by(emails.c.microseconds.desc(), emails.c.day.desc()).limit(1).scalar_subquery()
