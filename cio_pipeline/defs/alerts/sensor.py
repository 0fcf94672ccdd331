"""The sensor that sends alerts about failed runs, failed checks and days that are not delivered, as Dagster itself sends none.

It runs every minute, and needs only Dagster's daemon: no schedule and no run. Its cursor records what it has read and sent for
each target separately. So what cannot be sent to one target is tried again at the next tick, and not sent to another one twice.
"""

import logging
import time
from collections.abc import Iterator, Sequence

import dagster as dg
from pydantic import BaseModel, ValidationError

from cio_pipeline.alerts.alerts import Alert, alerts_of
from cio_pipeline.alerts.send import TRANSIENT, Send, call_heartbeat, senders_of
from cio_pipeline.defs.alerts.dagster_events import MAX_AT_ONCE, Position, events_since, start
from cio_pipeline.defs.alerts.runs import checks_of, newest, runs_ended, was_started_nightly
from cio_pipeline.settings.load import load_alert_settings
from cio_pipeline.settings.settings import AlertSettings

logger = logging.getLogger(__name__)

DESCRIPTION = (
    "Sends alerts to CIO_ALERT_WEBHOOK_URL and CIO_ALERT_EMAIL: failed runs, failed checks, days that are not delivered by"
    " CIO_DELIVERED_BY, and when each is over. Calls CIO_HEARTBEAT_URL when the schedule has delivered. It is on by"
    " default if one of them is set."
)
EVERY_SECONDS = 60
SENDING_SECONDS = 12.0
"""After this time a tick sends no more alerts to a target, as Dagster ends the tick after 60 seconds."""


class Cursor(BaseModel):
    """The sensor's cursor."""

    targets: dict[str, Position] = {}
    heartbeat: int | None = None


def _default_status() -> dg.DefaultSensorStatus:
    is_configured = load_alert_settings().is_configured
    return dg.DefaultSensorStatus.RUNNING if is_configured else dg.DefaultSensorStatus.STOPPED


@dg.sensor(description=DESCRIPTION, minimum_interval_seconds=EVERY_SECONDS, default_status=_default_status())
def customerio_alerts(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Reads what has happened, and sends it to each target. The cursor keeps what could not be sent."""
    settings, cursor = load_alert_settings(), _cursor(context.cursor)
    senders = senders_of(settings)
    instance, checks = context.instance, checks_of(context)
    targets = {target: _read(instance, settings, cursor.targets.get(target) or start(instance), checks) for target in senders}
    problems = list(_send_all(senders, targets))
    heartbeat, sent = _heartbeat(instance, settings, cursor.heartbeat)
    context.update_cursor(Cursor(targets=targets, heartbeat=heartbeat).model_dump_json())
    problems += [sent] if sent else []
    for problem in problems:
        logger.warning("%s It will be tried again in a minute.", problem)
    if not settings.is_configured:
        return dg.SkipReason("No alerts are sent: CIO_ALERT_WEBHOOK_URL, CIO_ALERT_EMAIL and CIO_HEARTBEAT_URL are not set.")
    return dg.SkipReason(" ".join(problems) or "No alert is waiting to be sent.")


def _cursor(text: str | None) -> Cursor:
    try:
        return Cursor.model_validate_json(text or "{}")
    except ValidationError:
        return Cursor()


def _read(
    instance: dg.DagsterInstance, settings: AlertSettings, position: Position, checks: Sequence[dg.AssetCheckKey]
) -> Position:
    """Returns the position after what has happened since, with the alerts to send. Reads nothing while many alerts wait."""
    if len(position.unsent) >= MAX_AT_ONCE:
        return position
    after = position.model_copy(deep=True)
    events = events_since(instance, settings, after, checks)
    alerts, after.open_alerts = alerts_of(events, position.open_alerts)
    after.unsent += alerts
    return after


def _send_all(senders: dict[str, Send], targets: dict[str, Position]) -> Iterator[str]:
    """Sends the alerts that wait. Yields the first problem of each target."""
    for target, send in senders.items():
        end, problems, left = time.monotonic() + SENDING_SECONDS, list[str](), list[Alert]()
        for alert in targets[target].unsent:
            try:
                if time.monotonic() > end:
                    left.append(alert)
                else:
                    send(alert)
            except TRANSIENT as error:
                problems.append(str(error))
                left.append(alert)
        targets[target].unsent = left
        yield from (f"{len(left):,} waiting to be sent: {problem}" for problem in problems[:1])


def _heartbeat(instance: dg.DagsterInstance, settings: AlertSettings, last: int | None) -> tuple[int | None, str]:
    """Calls CIO_HEARTBEAT_URL if the schedule has delivered since. Returns the last storage id that was read, and the problem
    if there was one."""
    if settings.heartbeat_url is None:
        return None, ""
    if last is None:
        return newest(instance, dg.DagsterEventType.RUN_SUCCESS), ""
    ended = runs_ended(instance, dg.DagsterEventType.RUN_SUCCESS, last)
    try:
        if any(was_started_nightly(run) for _, run in ended):
            call_heartbeat(settings.heartbeat_url.get_secret_value())
    except TRANSIENT as error:
        return last, str(error)
    return ended[-1][0].storage_id if ended else last, ""
