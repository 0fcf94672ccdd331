"""Sends alerts to a webhook or by email, and calls the heartbeat URL. Errors do not quote the URLs, which are secrets."""

from __future__ import annotations

import logging
import smtplib
import ssl
from collections.abc import Callable, Mapping
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Any
from urllib.parse import unquote, urlsplit

import requests

from cio_pipeline.alerts.alerts import Alert
from cio_pipeline.errors import PipelineError
from cio_pipeline.http.attempt import Limits
from cio_pipeline.http.errors import Problem
from cio_pipeline.http.retry import RetryPolicy, Unavailable, send
from cio_pipeline.http.session import new_session
from cio_pipeline.settings.addresses import is_private
from cio_pipeline.settings.settings import AlertSettings

logger = logging.getLogger(__name__)

SECONDS = 10
"""How long one alert may take: a Dagster sensor has 60 seconds in all, and the next tick tries again."""

Send = Callable[[Alert], None]


class NotSent(PipelineError):
    """The mail server did not accept an email; the message says why."""


TRANSIENT = (Unavailable, NotSent)
"""The errors of sending; each is a sentence that names the setting."""


def senders_of(settings: AlertSettings) -> dict[str, Send]:
    """Returns the function that sends an alert, for each target in the settings. Each raises `Unavailable` or `NotSent`."""
    senders: dict[str, Send] = {}
    if settings.alert_webhook_url is not None:
        url = settings.alert_webhook_url.get_secret_value()
        body = _for_slack if settings.alert_format == "slack" else _as_json
        senders["webhook"] = lambda alert: _request(
            "POST", url, "CIO_ALERT_WEBHOOK_URL", json=body(alert, settings.dagster_url)
        )
    if settings.alert_email and settings.smtp_url is not None:
        server = settings.smtp_url.get_secret_value()
        sender = (settings.alert_email_from or settings.alert_email)[0]
        senders["email"] = lambda alert: _mail(server, email(alert, sender, settings.alert_email, settings.dagster_url))
    return senders


def call_heartbeat(url: str) -> None:
    """Tells a monitoring service that the schedule's run has delivered. Raises `Unavailable`."""
    _request("GET", url, "CIO_HEARTBEAT_URL")


def _for_slack(alert: Alert, dagster_url: str) -> dict[str, Any]:
    """The body for Slack's incoming webhooks, whose markup uses `<` and `>`, so that `&`, `<` and `>` are escaped."""
    text = alert.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    link = _link(alert, dagster_url).replace("&", "&amp;")
    return {"text": f"{text} <{link}|Open in Dagster>" if link else text}


def _as_json(alert: Alert, dagster_url: str) -> dict[str, Any]:
    """The body for a receiver of your own: the alert and its parts."""
    parts = {"kind": alert.kind, "is_resolved": alert.is_resolved, "partitions": list(alert.partitions)}
    return {"text": alert.text, **parts, "url": _link(alert, dagster_url) or None}


def email(alert: Alert, sender: str, to: tuple[str, ...], dagster_url: str) -> EmailMessage:
    """Returns the alert as an email."""
    message = EmailMessage()
    message["From"], message["To"] = sender, ", ".join(to)
    message["Subject"] = f"cio_pipeline: {alert.text if len(alert.text) <= 100 else alert.text[:99] + '…'}"
    message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain=sender.rpartition("@")[2])
    message["Auto-Submitted"] = "auto-generated"
    message.set_content("\n\n".join(filter(None, [alert.text, _link(alert, dagster_url)])))
    return message


def _link(alert: Alert, dagster_url: str) -> str:
    return dagster_url.rstrip("/") + alert.page if dagster_url else ""


def _request(method: str, url: str, setting: str, **request: Any) -> None:
    """Sends a request once, as the sensor's next tick tries again. Any answer other than a 2xx is a failure."""

    def problem_in(response: requests.Response) -> Problem | None:
        is_accepted = 200 <= response.status_code < 300
        return None if is_accepted else Problem(f"it answered {response.status_code}")

    once = RetryPolicy(tries=1, problem_in=problem_in)
    limits = Limits(seconds=SECONDS, timeout=(SECONDS / 2, SECONDS / 2))
    with new_session(url=url) as session:
        send(session, method, url, service=setting, retry=once, limits=limits, **request)


def _mail(url: str, message: EmailMessage) -> None:
    """Sends an email; without TLS, only within a private network. Raises `NotSent`.

    If the server refuses some of the addresses, the others have got it. So it counts as sent, and a warning is logged.
    """
    parts, context = urlsplit(url), ssl.create_default_context()
    host, is_tls = parts.hostname or "", parts.scheme == "smtps"
    where = f"CIO_SMTP_URL ({host})"
    try:
        connected = (
            smtplib.SMTP_SSL(host, parts.port or 465, timeout=SECONDS / 2, context=context)
            if is_tls
            else smtplib.SMTP(host, parts.port or 587, timeout=SECONDS / 2)
        )
        with connected as server:
            server.ehlo()
            if not is_tls and server.has_extn("starttls"):
                server.starttls(context=context)
            elif not is_tls and not is_private(host):
                raise NotSent(f"{where} offers no TLS: the email was not sent.")
            if parts.username:
                server.login(unquote(parts.username), unquote(parts.password or ""))
            refused_addresses = server.send_message(message)
    except smtplib.SMTPResponseException as refused:
        raise NotSent(f"{where} did not accept an email: it answered {refused.smtp_code}.") from None
    except smtplib.SMTPRecipientsRefused as refused:
        raise NotSent(f"{where} did not accept an email: it refused CIO_ALERT_EMAIL ({_codes(refused.recipients)}).") from None
    except (smtplib.SMTPException, OSError) as error:
        raise NotSent(f"{where} did not accept an email: {type(error).__name__}.") from None
    if refused_addresses:
        logger.warning(
            "%s accepted an alert, but not for %s of the %s addresses in CIO_ALERT_EMAIL (%s). It is not sent to these again:"
            " correct them.",
            where,
            len(refused_addresses),
            len(message["To"].addresses),
            _codes(refused_addresses),
        )


def _codes(refused: Mapping[str, tuple[int, bytes]]) -> str:
    """Returns the codes of the server's answers, whose words may quote the addresses."""
    return ", ".join(sorted({str(code) for code, _ in refused.values()}))
