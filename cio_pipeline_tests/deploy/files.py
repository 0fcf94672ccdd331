"""What is in `deploy/`, read for the tests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from cio_pipeline.settings.places import PROJECT

DEPLOY = PROJECT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def read(name: str | Path) -> Any:
    """A YAML file there."""
    return yaml.safe_load((DEPLOY / name).read_text())


def image_command() -> list[str]:
    """What the image runs where no command is given."""
    command: list[str] = json.loads(re.findall(r"^CMD (.+)$", DOCKERFILE, re.MULTILINE)[-1])
    return command


def image_environment() -> dict[str, str]:
    """The image's own variables, without PATH."""
    lines = re.findall(r"^ENV (.+?[^\\])$", DOCKERFILE, re.MULTILINE | re.DOTALL)[0]
    return {name: value for name, value in re.findall(r"(\w+)=(\S+)", lines) if name != "PATH"}
