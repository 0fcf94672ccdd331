"""A `.env` and an environment whose settings name services and folders that must not be used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from cio_pipeline.settings.places import PROJECT


@dataclass
class Poison:
    """A working directory with a `.env`, an environment, and the requests to the services that they name."""

    folder: Path
    environment: dict[str, str]
    reached: list[str]

    def touched(self) -> list[str]:
        """Requests that came, and files that were written."""
        written = [path for name in ("data", "ledger", "home") for path in (self.folder / name).rglob("*")]
        return [*self.reached, *map(str, written)]


@contextmanager
def poisoned(folder: Path) -> Iterator[Poison]:
    """A server that stands for PostHog, Customer.io and a proxy, and accepts everything."""
    reached: list[str] = []

    class Takes(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reached.append(f"{self.command} {self.path}")
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_POST = do_PUT = do_DELETE = do_CONNECT = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Takes) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield Poison(folder, _filled(folder, f"http://127.0.0.1:{server.server_port}"), reached)
        server.shutdown()


def _filled(folder: Path, url: str) -> dict[str, str]:
    for name in ("data", "ledger", "home"):
        (folder / name).mkdir(parents=True)
    (folder / ".netrc").write_text("default login somebody password else\n")
    settings = {
        "POSTHOG_HOST": url,
        "POSTHOG_PROJECT_ID": "7",
        "POSTHOG_PERSONAL_API_KEY": "phx_real",
        "CUSTOMERIO_TRACKING_ENDPOINT": url,
        "CUSTOMERIO_SITE_ID": "real",
        "CUSTOMERIO_API_KEY": "real",
        "CIO_START_DATE": "2025-01-01",
        "CIO_ANONYMOUS_USERS": "emails",
        "CIO_DATA_DIR": str(folder / "data"),
        "CIO_LEDGER_URL": f"sqlite:///{folder / 'ledger' / 'ledger.db'}",
        "DAGSTER_HOME": str(folder / "home"),
    }
    (folder / ".env").write_text("".join(f"{name}='{value}'\n" for name, value in settings.items()) + "CIO_UNHEARD_OF=1\n")
    proxies = {name: url for proxy in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY") for name in (proxy, proxy.lower())}
    others = {"HOME": str(folder), "NETRC": str(folder / ".netrc"), "PYTHONPATH": str(PROJECT), "CIO_SANDBOX": "No"}
    return {**os.environ, **settings, **proxies, **others}
