"""Alerts in Slack's format, as JSON and by email, the heartbeat, and the errors of receivers that do not accept them."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cio_pipeline.alerts.alerts import Alert
from cio_pipeline.alerts.send import NotSent, call_heartbeat, email, senders_of
from cio_pipeline.http.retry import Unavailable
from cio_pipeline.settings.load import load_alert_settings
from cio_pipeline_tests.alerts.receivers import Webhook, mail_server, webhook

ALERT = Alert(
    kind="run", is_resolved=False, text="A & B <failed> of 2026-03-02.", partitions=("2026-03-02",), page="/runs/1?a&b"
)


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    with webhook() as kept:
        monkeypatch.setenv("CIO_ALERT_WEBHOOK_URL", kept.url)
        monkeypatch.setenv("CIO_DAGSTER_URL", "https://dagster.example.com/ui/")
        yield kept


def send() -> None:
    [one] = senders_of(load_alert_settings()).values()
    one(ALERT)


def test_slack_gets_escaped_text_and_a_link(hook: Webhook) -> None:
    send()
    link = "<https://dagster.example.com/ui/runs/1?a&amp;b|Open in Dagster>"
    assert hook.got == [{"text": f"A &amp; B &lt;failed&gt; of 2026-03-02. {link}"}]


def test_without_the_address_of_the_ui_there_is_no_link(hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CIO_DAGSTER_URL")
    send()
    assert hook.got == [{"text": "A &amp; B &lt;failed&gt; of 2026-03-02."}]


def test_json_has_the_parts(hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIO_ALERT_FORMAT", "json")
    send()
    assert hook.got == [
        {
            "text": ALERT.text,
            "kind": "run",
            "is_resolved": False,
            "partitions": ["2026-03-02"],
            "url": "https://dagster.example.com/ui/runs/1?a&b",
        }
    ]


@pytest.mark.parametrize("status", [302, 404, 429, 500])
def test_any_answer_other_than_a_2xx_is_a_failure_that_shows_no_secret(hook: Webhook, status: int) -> None:
    hook.status = status
    with pytest.raises(Unavailable) as failed:
        send()
    assert str(failed.value) == f"CIO_ALERT_WEBHOOK_URL (127.0.0.1) gave no usable answer in 1 try: it answered {status}."


def test_an_unreachable_webhook_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIO_ALERT_WEBHOOK_URL", "http://127.0.0.1:1/secret-token")
    with pytest.raises(Unavailable, match=r"^CIO_ALERT_WEBHOOK_URL \(127\.0\.0\.1\) could not be reached in 1 try") as failed:
        send()
    assert "secret" not in str(failed.value)


def test_a_heartbeat_is_a_get_request(hook: Webhook) -> None:
    call_heartbeat(hook.url)
    assert hook.got == [None]
    hook.status = 404
    with pytest.raises(Unavailable, match=r"^CIO_HEARTBEAT_URL .* it answered 404\.$"):
        call_heartbeat(hook.url)


def test_an_email_goes_to_each_address_with_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    with mail_server() as (host, lines):
        monkeypatch.setenv("CIO_SMTP_URL", f"smtp://{host}")
        monkeypatch.setenv("CIO_ALERT_EMAIL", "a@example.com, b@example.com")
        monkeypatch.setenv("CIO_ALERT_EMAIL_FROM", "cio@example.com")
        monkeypatch.setenv("CIO_DAGSTER_URL", "https://dagster.example.com")
        send()
    commands = [line.lower() for line in lines]  # newer Pythons write them in upper case
    assert {"rcpt to:<a@example.com>", "rcpt to:<b@example.com>"} <= set(commands)
    assert any(line.startswith("mail from:<cio@example.com>") for line in commands)
    assert {"Subject: cio_pipeline: A & B <failed> of 2026-03-02.", ALERT.text} <= set(lines)
    assert "https://dagster.example.com/runs/1?a&b" in lines


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ({"AUTH": "535 no secret-password"}, "it answered 535."),
        ({"RCPT": "550 nobody"}, "it refused CIO_ALERT_EMAIL (550)."),
        ({"DATA": "552 full"}, "it answered 552."),
    ],
)
def test_a_mail_servers_refusal_is_reported_without_the_login(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, str], sentence: str
) -> None:
    with mail_server(answers) as (host, _):
        monkeypatch.setenv("CIO_SMTP_URL", f"smtp://user:secret-password@{host}")
        monkeypatch.setenv("CIO_ALERT_EMAIL", "a@example.com")
        with pytest.raises(NotSent) as failed:
            send()
    assert str(failed.value) == f"CIO_SMTP_URL (127.0.0.1) did not accept an email: {sentence}"


def test_an_email_that_is_refused_for_some_addresses_is_sent_to_the_others_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refused = {"rcpt to:<b@example.com>": "550 no b@example.com", "rcpt to:<c@example.com>": "450 not now"}
    with mail_server(refused) as (host, lines):
        monkeypatch.setenv("CIO_SMTP_URL", f"smtp://{host}")
        monkeypatch.setenv("CIO_ALERT_EMAIL", "a@example.com,b@example.com,c@example.com")
        send()
    assert ALERT.text in lines
    assert caplog.messages == [
        "CIO_SMTP_URL (127.0.0.1) accepted an alert, but not for 2 of the 3 addresses in CIO_ALERT_EMAIL (450, 550). It is not"
        " sent to these again: correct them."
    ]


def test_nothing_is_sent_to_a_public_mail_server_without_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cio_pipeline.alerts.send.is_private", lambda host: False)
    with mail_server() as (host, lines):
        monkeypatch.setenv("CIO_SMTP_URL", f"smtp://user:secret@{host}")
        monkeypatch.setenv("CIO_ALERT_EMAIL", "a@example.com")
        with pytest.raises(NotSent, match="offers no TLS: the email was not sent"):
            send()
    assert not any(line.upper().startswith(("AUTH", "MAIL")) for line in lines)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEM file with a key and a self-signed certificate for 127.0.0.1."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    signed = builder.add_extension(alternative, critical=True).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    file.write_bytes(secret + signed.public_bytes(pem))
    return file


@pytest.mark.parametrize(("scheme", "starttls"), [("smtp", True), ("smtps", False)])
def test_an_email_goes_by_tls_only_to_a_server_with_a_trusted_certificate(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, *, starttls: bool
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with mail_server(tls=context, starttls=starttls) as (host, lines):
        monkeypatch.setenv("CIO_SMTP_URL", f"{scheme}://user:secret@{host}")
        monkeypatch.setenv("CIO_ALERT_EMAIL", "a@example.com")
        with pytest.raises(NotSent, match="did not accept an email: SSLCertVerificationError"):
            send()
        assert not any(line.upper().startswith(("AUTH", "MAIL")) for line in lines)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        send()
    assert any(line.startswith("AUTH PLAIN") for line in lines)
    assert ALERT.text in lines


def test_a_long_sentence_has_a_short_subject() -> None:
    long = ALERT.model_copy(update={"text": "x" * 500})
    assert len(str(email(long, "a@example.com", ("b@example.com",), "")["Subject"])) < 130
