"""The links within the documentation, and the modules that it names, are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = [
    *("alerts", "cli", "customerio", "defs/alerts", "defs/assets", "defs/checks", "defs/delivery", "defs/jobs", "defs/pages"),
    *("http", "pipeline", "posthog", "posthog/exports", "rules", "sandbox", "sandbox/customerio", "sandbox/posthog"),
    *("settings", "state", "tables"),
]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")


def anchors(page: Path) -> set[str]:
    """What GitHub names the page's headings by: in lower case, without punctuation, with hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_leads_to_a_file_and_to_a_heading_in_it(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_says_what_each_of_its_modules_is_for(folder: str) -> None:
    here = ROOT / "cio_pipeline" / folder
    named = set(re.findall(r"`(\w+)`", (here / "__init__.py").read_text()))
    assert named == {path.stem for path in here.glob("*.py")} - {"__init__"}


def test_every_rule_has_a_row_and_a_row_that_links_has_a_section() -> None:
    text = (ROOT / "docs" / "rules.md").read_text()
    assert re.findall(r"^\| (R\d+) \|", text, re.MULTILINE) == [f"R{number}" for number in range(1, 23)]
    linked = re.findall(r"^\| (R\d+) \| \*\*\[", text, re.MULTILINE)
    assert re.findall(r"^### (R\d+):", text, re.MULTILINE) == linked


def test_every_rule_names_modules_that_mention_it() -> None:
    rows = re.findall(r"^\| (R\d+) \| .* \| (.*) \|$", (ROOT / "docs" / "rules.md").read_text(), re.MULTILINE)
    assert len(rows) == 22
    for rule, cell in rows:
        modules = re.findall(r"`([^`]+)`", cell)
        assert modules, rule
        for module in modules:
            assert re.search(rf"\b{rule}\b", (ROOT / "cio_pipeline" / module).read_text()), f"{rule}: {module}"
