"""The first rows of a table, with the JSON as it goes out, show nobody's data."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.defs.pages.previews import MAX_NAMES, MAX_ROWS, first_rows, mask_operation, mask_value
from cio_pipeline.rules.options import Options
from cio_pipeline_tests.days import Days
from cio_pipeline_tests.rules.streams import event, frame

texts = st.text(string.ascii_letters + string.digits, min_size=2).map(lambda text: f"~{text}")
values = st.recursive(
    texts | st.integers(min_value=10), lambda inner: st.lists(inner) | st.dictionaries(st.just("name"), inner), max_leaves=8
)


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict | list):
        return [leaf for one in (value.values() if isinstance(value, dict) else value) for leaf in leaves(one)]
    return [value]


@given(values)
def test_no_value_is_shown(value: Any) -> None:
    shown = [str(leaf) for leaf in leaves(mask_value(value))]
    assert [leaf for leaf in leaves(value) if str(leaf) in shown] == []


def test_an_operation_keeps_its_form_its_names_and_what_is_nobodys() -> None:
    operation = {
        "type": "person",
        "action": "event",
        "identifiers": {"email": "jane@example.com"},
        "id": "01HZY",
        "name": "Invited bob@example.com",
        "timestamp": 1772460000,
        "attributes": {"plan": "pro", "paid": True, "total": 1234, "of joe@example.com": None, "items": [{"sku": "A7"}, 2]},
    }
    assert json.loads(mask_operation(json.dumps(operation))) == {
        **operation,
        "identifiers": {"email": "j***@e***.com"},
        "name": "Invited b***@e***.com",
        "attributes": {
            "plan": "p***",
            "paid": True,
            "total": "1***",
            "of j***@e***.com": None,
            "items": [{"sku": "A***"}, "…"],
        },
    }


def test_of_many_names_the_first_are_shown() -> None:
    shown = mask_value({f"a{number}": number for number in range(MAX_NAMES + 3)})
    assert (len(shown), shown["…"]) == (MAX_NAMES + 1, "3 more")


def test_the_first_rows_of_each_table_are_shown_masked(tmp_path: Path) -> None:
    product, day = Days(str(tmp_path), Options()), "2026-03-02"
    events = [event("visit", f"jane-{n}", set_={"email": f"jane{n}@example.com", "": "secret"}) for n in range(MAX_ROWS + 2)]
    product.extract(day, frame(*events, event("a|b\n`c`", " ")), shards=3)
    product.learn(day)
    product.derive(day)
    for table in ("posthog_events", "customers", "events", "rejects"):
        shown: Any = first_rows(product.tables, table, day)
        assert len(shown.records) == (1 if table == "rejects" else MAX_ROWS), table
        assert [secret for secret in ("jane", "example.com", "secret") if secret in str(shown)] == [], table
