"""`make screenshots`: the picture of a receipt in the README, as Dagster's UI shows it after `make demo`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time

import requests

from cio_pipeline.cli.ui import free_port
from cio_pipeline.sandbox.demo import DAYS, FOLDER, demo
from cio_pipeline.sandbox.processes import bare_environment, end, local
from cio_pipeline.settings.places import PROJECT

PICTURE = PROJECT / "docs" / "img" / "receipt.png"
START_SECONDS = 180
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def screenshots() -> int:
    """Runs the demo and takes the picture of its late events' receipt in Dagster's UI with Chromium; gives the exit status."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.stderr.write("Chromium is needed to take the pictures.\n")
        return 1
    if demo():
        return 1
    home, address = FOLDER / "dagster", f"http://127.0.0.1:{free_port()}"
    shutil.copy(PROJECT / "dagster.yaml", home)
    settings = {
        "CIO_SANDBOX": "Yes",
        "CIO_START_DATE": DAYS[0],
        "DAGSTER_HOME": str(home),
    }
    command = [sys.executable, "-m", "dagster_webserver", "-w", str(PROJECT / "workspace.yaml"), "-h", "127.0.0.1"]
    webserver = subprocess.Popen(  # noqa: S603
        [*command, "-p", address.rpartition(":")[2]],
        env=bare_environment(FOLDER) | settings,
        cwd=home,
        text=True,
        start_new_session=True,
    )
    try:
        _wait_for(address)
        _take(browser, f"{address}/assets/cio/customerio_delivery?view=partitions&partition={DAYS[1]}")
    finally:
        end(webserver)
    return 0


def _wait_for(address: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            local().get(f"{address}/server_info", timeout=5).raise_for_status()
        except requests.RequestException:
            time.sleep(0.5)
        else:
            return
    raise RuntimeError("Dagster's webserver did not start.")


def _take(browser: str, url: str) -> None:
    with tempfile.TemporaryDirectory() as profile:
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
        view = (f"--user-data-dir={profile}", "--window-size=1400,1000", "--virtual-time-budget=20000")
        subprocess.run(  # noqa: S603
            [browser, *options, *view, f"--screenshot={PICTURE}", url], check=True, timeout=180, capture_output=True
        )
    print(f"{PICTURE} is new.")


if __name__ == "__main__":
    sys.exit(screenshots())
