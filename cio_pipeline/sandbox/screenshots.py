"""`make screenshots`: takes the README's picture of a receipt in Dagster's UI after `make demo`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time

import requests

from cio_pipeline.cli.processes import end, local
from cio_pipeline.cli.ui import free_port
from cio_pipeline.sandbox.demo import DAYS, demo
from cio_pipeline.sandbox.processes import bare_environment, sandbox_folder
from cio_pipeline.settings.places import DAGSTER_YAML, PROJECT, WORKSPACE_YAML

RECEIPT_IMAGE = PROJECT / "docs" / "img" / "receipt.png"
ENTRIES = RECEIPT_IMAGE.with_suffix(".txt")
"""The names of the entries in the picture. A test compares them with a receipt's, so that the picture is kept current."""

QUERY = """{ assetNodeOrError(assetKey: {path: ["cio", "customerio_delivery"]}) {
  ... on AssetNode { assetMaterializations(limit: 1) { metadataEntries { label } } } } }"""
START_SECONDS = 180
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def screenshots() -> int:
    """Runs the demo and takes the picture of the receipt for its late events with Chromium. Returns the exit status."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.stderr.write("Chromium is needed to take the picture.\n")
        return 1
    if demo():
        return 1
    folder = sandbox_folder("demo")
    home, address = folder / "dagster", f"http://127.0.0.1:{free_port()}"
    shutil.copy(DAGSTER_YAML, home)
    settings = {
        "CIO_SANDBOX": "Yes",
        "CIO_START_DATE": DAYS[0],
        "DAGSTER_HOME": str(home),
    }
    command = [sys.executable, "-m", "dagster_webserver", "-w", str(WORKSPACE_YAML), "-h", "127.0.0.1"]
    webserver = subprocess.Popen(  # noqa: S603
        [*command, "-p", address.rpartition(":")[2]],
        env=bare_environment(folder) | settings,
        cwd=home,
        text=True,
        start_new_session=True,
    )
    try:
        _wait_for(address)
        _capture(browser, f"{address}/assets/cio/customerio_delivery?view=partitions&partition={DAYS[1]}")
        ENTRIES.write_text("".join(f"{name}\n" for name in _entries(address)))
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


def _entries(address: str) -> list[str]:
    """The names of the last receipt's entries."""
    answer = local().post(f"{address}/graphql", json={"query": QUERY}, timeout=60).json()
    [receipt] = answer["data"]["assetNodeOrError"]["assetMaterializations"]
    return [entry["label"] for entry in receipt["metadataEntries"]]


def _capture(browser: str, url: str) -> None:
    with tempfile.TemporaryDirectory() as profile:
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
        view = (f"--user-data-dir={profile}", "--window-size=1400,1400", "--virtual-time-budget=20000")
        subprocess.run(  # noqa: S603
            [browser, *options, *view, f"--screenshot={RECEIPT_IMAGE}", url], check=True, timeout=180, capture_output=True
        )
    print(f"Updated {RECEIPT_IMAGE}.")


if __name__ == "__main__":
    sys.exit(screenshots())
