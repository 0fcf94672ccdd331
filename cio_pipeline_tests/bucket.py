"""A real S3 server for the tests: moto's, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import requests

from cio_pipeline_tests.postgres import free_port

START_SECONDS = 60
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "sandbox", "AWS_SECRET_ACCESS_KEY": "sandbox", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def s3(*buckets: str) -> Iterator[str]:
    """The URL of a server with these buckets."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", url.rpartition(":")[2]]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _made(url, buckets):
            if time.monotonic() > deadline:
                raise RuntimeError("The S3 server did not start.")
            time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait(10)


def _made(url: str, buckets: tuple[str, ...]) -> bool:
    try:
        for bucket in buckets:
            requests.put(f"{url}/{bucket}", timeout=5).raise_for_status()
    except requests.ConnectionError:
        return False
    return True
