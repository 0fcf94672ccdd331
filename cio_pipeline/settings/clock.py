"""The times of the schedules: each function returns a setting's value, or raises `ValueError` with what is wrong with it."""

from __future__ import annotations

import re
from datetime import time
from typing import Any
from zoneinfo import ZoneInfo


def parse_time_of_day(text: Any) -> Any:
    """Returns a time of day, `HH:MM`, in CIO_TIME_ZONE."""
    if not isinstance(text, str):
        return text
    if not re.fullmatch(r"([01]?[0-9]|2[0-3]):[0-5][0-9]", text):
        raise ValueError("must be a time of day, such as 09:00")
    return time.fromisoformat(text.zfill(5))


def parse_time_zone(text: Any) -> Any:
    """Returns the name of a time zone."""
    try:
        ZoneInfo(text)
    except (KeyError, ValueError, OSError):  # not there, no name, a folder
        raise ValueError("must be a time zone of the IANA database, such as UTC or Europe/Berlin") from None
    return text


def parse_cron(text: Any) -> Any:
    """Returns a schedule that Dagster accepts: five fields, such as `30 * * * *`."""
    from dagster._utils.schedules import is_valid_cron_string  # slow to load, and seldom needed

    if not is_valid_cron_string(str(text)):
        raise ValueError("must be a cron schedule of five fields, such as 30 * * * *")
    return text
