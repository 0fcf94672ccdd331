"""Translates HogQL to DuckDB's SQL: a SELECT from the events table, with the functions that the extraction needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

MAX_ROWS = 50_000
DEFAULT_ROWS = 100
OFFSET_REFUSED = (
    "OFFSET is not supported on queries made with a personal API key. "
    "For pagination, use keyset pagination on the `timestamp` column."
)

FIELDS = ("uuid", "event", "properties", "timestamp", "distinct_id", "elements_chain", "created_at")
FUNCTIONS = {
    "cityHash64": "(x) AS hash(x)",
    "toYYYYMM": "(x) AS (year(x) * 100 + month(x))::UINTEGER",
}
DATE = "toDateTime64"
SAME_IN_DUCKDB = (exp.And, exp.Or, exp.Array, exp.Count)
SCHEMA = [
    "CREATE TABLE events (uuid UUID, event VARCHAR, properties VARCHAR, timestamp TIMESTAMP, distinct_id VARCHAR,"
    " elements_chain VARCHAR, created_at TIMESTAMP, person_properties VARCHAR)",
    *(f"CREATE MACRO {name}{body}" for name, body in FUNCTIONS.items()),
]

_TOKEN = re.compile(
    r"""(?P<kept>'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.)*"|`[^`]*`|--[^\n]*|/\*.*?\*/)"""
    r"""|\{\s*(?P<placeholder>\w+)\s*\}""",
    re.DOTALL,
)


class HogQLError(ValueError):
    """PostHog would refuse the query, with this `code`."""

    def __init__(self, detail: str, code: str = "hogql_query_error") -> None:
        super().__init__(detail)
        self.code = code


@dataclass(frozen=True)
class Statement:
    """SQL for a DuckDB with `SCHEMA`. limited: the query had a LIMIT."""

    sql: str
    limited: bool


def to_duckdb(query: str, values: Mapping[str, object], zone: str = "UTC") -> Statement:
    """Binds `{name}` placeholders to `values` and translates the query. zone: of times without one in toDateTime64.

    LIMIT is lowered to 50,000. Without one, 101 rows are selected, one more than PostHog returns. Raises `HogQLError`.
    """
    select = _parsed(_bound(query, values))
    _check_tables(select)
    _check_functions(select)
    limited = _limit(select)
    _resolve_fields(select)
    for call in list(select.find_all(exp.Func)):
        _rewrite(call, zone)
    return Statement(select.sql(dialect="duckdb"), limited)


def _bound(query: str, values: Mapping[str, object]) -> str:
    """Inserts the values as constants."""

    def token(match: re.Match[str]) -> str:
        if match["kept"]:
            return match["kept"]
        if match["placeholder"] not in values:
            raise HogQLError(f"Unresolved placeholder: {{{match['placeholder']}}}")
        return str(exp.convert(values[match["placeholder"]]).sql(dialect="clickhouse"))

    return _TOKEN.sub(token, query)


def _parsed(query: str) -> exp.Select:
    try:
        tree = sqlglot.parse_one(query, read="clickhouse")
    except SqlglotError as error:
        raise HogQLError(f"Syntax error: {str(error).splitlines()[0]}", "hogql_syntax_error") from error
    if not isinstance(tree, exp.Select) or tree.args.get("into"):
        raise HogQLError("Syntax error: the sandbox serves one SELECT at a time", "hogql_syntax_error")
    if tree.find(exp.Offset):
        raise HogQLError(OFFSET_REFUSED)
    return tree


def _check_tables(select: exp.Select) -> None:
    for table in select.find_all(exp.Table):
        if not isinstance(table.this, exp.Identifier) or table.db or table.name != "events":
            raise HogQLError(f"Unknown table `{table.name or table.sql()}`.")


def _check_functions(select: exp.Select) -> None:
    for call in select.find_all(exp.Func):
        if not isinstance(call, SAME_IN_DUCKDB) and _name(call) not in {*FUNCTIONS, DATE}:
            raise HogQLError(f"Unsupported function call '{_name(call)}(...)'")


def _name(call: exp.Expr) -> str:
    return str(call.sql(dialect="clickhouse").partition("(")[0])


def _limit(select: exp.Select) -> bool:
    limit = select.args.get("limit")
    if limit is None:
        select.limit(DEFAULT_ROWS + 1, copy=False)
        return False
    if limit.expressions or not limit.expression.is_int:
        raise HogQLError("The sandbox serves LIMIT with a number only")
    select.limit(min(int(limit.expression.name), MAX_ROWS), copy=False)
    return True


def _resolve_fields(select: exp.Select) -> None:
    """Names every column as PostHog does, and replaces every field by a column."""
    known = {*FIELDS, *(alias.alias for alias in select.find_all(exp.Alias))}
    select.select(*(_named(column) for column in select.expressions), append=False, copy=False)
    for node in list(select.find_all(exp.Column)):
        node.replace(_field([part.name for part in node.parts], known))


def _named(column: exp.Expr) -> exp.Expr:
    if isinstance(column, exp.Alias):
        return column
    return exp.alias_(column, column.name if isinstance(column, exp.Column) else column.sql(dialect="clickhouse"), quoted=True)


def _field(parts: list[str], known: set[str]) -> exp.Expr:
    match parts:
        case ["poe", "properties"]:
            return exp.column("person_properties", quoted=True)
        case [name] if name in known:
            return exp.column(name, quoted=True)
    raise HogQLError(f"Unable to resolve field: {parts[0]}")


def _rewrite(call: exp.Expr, zone: str) -> None:
    """Replaces toDateTime64 by a time in UTC; every other function keeps its arguments."""
    if isinstance(call, SAME_IN_DUCKDB):
        return
    name = _name(call)
    if name == DATE:
        call.replace(_moment(call, zone))
    else:
        call.replace(exp.Anonymous(this=name, expressions=call.expressions))


def _moment(call: exp.Expr, zone: str) -> exp.Expr:
    text, *rest = call.expressions
    if not text.is_string:
        raise HogQLError(f"The sandbox serves {call.name} of text only")
    try:
        moment = datetime.fromisoformat(text.name)
        local = ZoneInfo(rest[-1].name if rest and rest[-1].is_string else zone)
    except ZoneInfoNotFoundError as error:
        raise HogQLError(f"Unknown time zone: {rest[-1].name}") from error
    except ValueError:
        return exp.null()
    utc = (moment if moment.tzinfo else moment.replace(tzinfo=local)).astimezone(UTC)
    return exp.cast(exp.Literal.string(f"{utc:%Y-%m-%d %H:%M:%S.%f}"), "TIMESTAMP")
