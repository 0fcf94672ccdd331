"""The options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., int])


def days(command: Command) -> Command:
    """Adds the options that name days."""
    for option in (
        click.option("--to", "last", metavar="DAY", help="The last of several days."),
        click.option("--from", "first", metavar="DAY", help="The first of several days."),
        click.option("--partition", metavar="DAY", help="One day, YYYY-MM-DD."),
    ):
        command = option(command)
    return command


def first_and_last(partition: str | None, first: str | None, last: str | None) -> tuple[str | None, str | None]:
    """Returns the first and the last day that the options of `days` name; None: not named. Raises `click.UsageError` if
    `--partition` is combined with the others."""
    if partition and (first or last):
        raise click.UsageError("--partition cannot be combined with --from or --to.")
    return first or partition, last or partition


def _finite(_: click.Context, __: click.Parameter, hours: float | None) -> float | None:
    if hours is not None and not math.isfinite(hours):
        raise click.BadParameter("must be a number of hours.")
    return hours


def delivery_options(command: Command) -> Command:
    """Adds the options of a delivery: what to leave for another run, what to send again, and limits instead of the
    settings'."""
    for option in (
        click.option(
            "--max-campaign-events",
            type=click.IntRange(min=0),
            metavar="EVENTS",
            help="Instead of CIO_MAX_CAMPAIGN_EVENTS. If the ledger was lost, this also accepts the new one.",
        ),
        click.option(
            "--max-new-customers",
            type=click.IntRange(min=0),
            metavar="CUSTOMERS",
            help="Instead of CIO_MAX_NEW_CUSTOMERS.",
        ),
        click.option(
            "--resend",
            is_flag=True,
            help="Also send what was delivered, is unchanged or was refused. Attributes still never go back in time.",
        ),
        click.option(
            "--hold-recent-events",
            type=click.FloatRange(0, 1_000_000),
            callback=_finite,
            metavar="HOURS",
            help="Hold back events younger than this, and the attributes, customers and stitched events that come only from"
            " them, for a later run. Events under 72 hours old can start campaigns.",
        ),
        click.option(
            "--limit",
            type=click.IntRange(min=1),
            metavar="CUSTOMERS",
            help="Send only the first CUSTOMERS customers of each day, with their events; the rest waits for another run.",
        ),
    ):
        command = option(command)
    return command
