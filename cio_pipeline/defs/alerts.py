"""The sensor that tells people of failed runs, failed checks and days that are not delivered: Dagster itself tells nobody.

It looks every minute, and needs Dagster's daemon and nothing else: no schedule, no run. What it has read and told stands in its
cursor, for each place by itself: what cannot be sent to one is tried at the next tick, and is not sent to another twice.
"""

import logging
import time
from collections.abc import Iterator, Sequence

import dagster as dg
from pydantic import BaseModel, ValidationError

from cio_pipeline.alerts.alerts import Alert, alerts_of
from cio_pipeline.alerts.send import MAY_PASS, Send, call_heartbeat, targets
from cio_pipeline.defs.alert_events import (
    MOST_AT_ONCE,
    Seen,
    checks_of,
    events_since,
    is_delivered_by_schedule,
    newest,
    runs_ended,
    start,
)
from cio_pipeline.settings.settings import AlertSettings, load_alert_settings

logger = logging.getLogger(__name__)

DESCRIPTION = (
    "Tells CIO_ALERT_WEBHOOK_URL and CIO_ALERT_EMAIL of failed runs, failed checks, days that are not delivered by"
    " CIO_DELIVERED_BY, and when each is over; calls CIO_HEARTBEAT_URL when the schedule has delivered. It is on where"
    " one of the three is set."
)
EVERY_SECONDS = 60
SENDING_SECONDS = 12.0
"""The longest that a tick begins to send to one place: Dagster ends it after 60 seconds."""


class Cursor(BaseModel):
    """The sensor's cursor."""

    places: dict[str, Seen] = {}
    heartbeat: int | None = None


def _default_status() -> dg.DefaultSensorStatus:
    told = load_alert_settings().is_anybody_told
    return dg.DefaultSensorStatus.RUNNING if told else dg.DefaultSensorStatus.STOPPED


@dg.sensor(description=DESCRIPTION, minimum_interval_seconds=EVERY_SECONDS, default_status=_default_status())
def customerio_alerts(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """One tick: what has happened is read for each place, then sent; the cursor keeps what could not be."""
    settings, cursor = load_alert_settings(), _cursor(context.cursor)
    sends = targets(settings)
    instance, checks = context.instance, checks_of(context)
    places = {place: _read(instance, settings, cursor.places.get(place) or start(instance), checks) for place in sends}
    problems = list(_send_all(sends, places))
    heartbeat, sent = _heartbeat(instance, settings, cursor.heartbeat)
    context.update_cursor(Cursor(places=places, heartbeat=heartbeat).model_dump_json())
    problems += [sent] if sent else []
    for problem in problems:
        logger.warning("%s This is tried again in a minute.", problem)
    if not settings.is_anybody_told:
        return dg.SkipReason("Nobody is told: CIO_ALERT_WEBHOOK_URL, CIO_ALERT_EMAIL and CIO_HEARTBEAT_URL are not set.")
    return dg.SkipReason(" ".join(problems) or "All is told.")


def _cursor(text: str | None) -> Cursor:
    try:
        return Cursor.model_validate_json(text or "{}")
    except ValidationError:
        return Cursor()


def _read(instance: dg.DagsterInstance, settings: AlertSettings, seen: Seen, checks: Sequence[dg.AssetCheckKey]) -> Seen:
    """What has happened since, as alerts to send; nothing is read while many wait."""
    if len(seen.unsent) >= MOST_AT_ONCE:
        return seen
    after = seen.model_copy(deep=True)
    events = events_since(instance, settings, after, checks)
    alerts, after.troubles = alerts_of(events, seen.troubles)
    after.unsent += alerts
    return after


def _send_all(sends: dict[str, Send], places: dict[str, Seen]) -> Iterator[str]:
    """Sends what waits, and gives the first problem of each place; what is sent waits no longer."""
    for place, send in sends.items():
        end, problems, left = time.monotonic() + SENDING_SECONDS, list[str](), list[Alert]()
        for alert in places[place].unsent:
            try:
                if time.monotonic() > end:
                    left.append(alert)
                else:
                    send(alert)
            except MAY_PASS as trouble:
                problems.append(str(trouble))
                left.append(alert)
        places[place].unsent = left
        yield from (f"{len(left):,} to tell: {problem}" for problem in problems[:1])


def _heartbeat(instance: dg.DagsterInstance, settings: AlertSettings, last: int | None) -> tuple[int | None, str]:
    """Calls CIO_HEARTBEAT_URL if the schedule has delivered since; gives up to where that is known, and the problem, if any."""
    if settings.heartbeat_url is None:
        return None, ""
    if last is None:
        return newest(instance, dg.DagsterEventType.RUN_SUCCESS), ""
    ended = runs_ended(instance, dg.DagsterEventType.RUN_SUCCESS, last)
    try:
        if any(is_delivered_by_schedule(run) for _, run in ended):
            call_heartbeat(settings.heartbeat_url.get_secret_value())
    except MAY_PASS as trouble:
        return last, str(trouble)
    return ended[-1][0].storage_id if ended else last, ""
