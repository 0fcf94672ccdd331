"""Translates HogQL to DuckDB's SQL: a SELECT from the events table, with the functions that the extraction needs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
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
TYPED = {"uuid": "toUUID", "timestamp": "toDateTime", "created_at": "toDateTime"}

# ClickHouse orders UUIDs by their second half: the column holds both halves swapped, so DuckDB's own order is that one.
HELPERS = {
    "swapped": "(text) AS concat_ws('-', text[20:23] || text[25:28], text[29:32], text[33:36], text[1:4],"
    " text[5:8] || text[10:13] || text[15:18])",
}
FUNCTIONS = {
    "cityHash64": "(x) AS hash(x)",
    "toString": "(x) AS CASE typeof(x) WHEN 'UUID' THEN swapped(x::VARCHAR) WHEN 'TIMESTAMP'"
    " THEN strftime(try_cast(x::VARCHAR AS TIMESTAMP), '%Y-%m-%d %H:%M:%S.%f') ELSE x::VARCHAR END",
    "toYYYYMM": "(x) AS (year(x) * 100 + month(x))::UINTEGER",
    "toUUID": "(x) AS try_cast(swapped(try_cast(x AS UUID)::VARCHAR) AS UUID)",
}
DATES = ("toDateTime", "toDateTime64")
SAME_IN_DUCKDB = (
    *(exp.And, exp.Or, exp.Array, exp.Case, exp.Cast, exp.Coalesce, exp.If),
    *(exp.Avg, exp.Count, exp.CountIf, exp.Max, exp.Min, exp.Sum),
    *(exp.Length, exp.Lower, exp.StartsWith, exp.Upper),
)
SCHEMA = [
    "CREATE TABLE events (uuid UUID, event VARCHAR, properties VARCHAR, timestamp TIMESTAMP, distinct_id VARCHAR,"
    " elements_chain VARCHAR, created_at TIMESTAMP, person_properties VARCHAR)",
    *(f"CREATE MACRO {name}{body}" for name, body in (HELPERS | FUNCTIONS).items()),
]

_TOKEN = re.compile(
    r"""(?P<kept>'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.)*"|`[^`]*`|--[^\n]*|/\*.*?\*/)"""
    r"""|\{\s*(?P<placeholder>\w+)\s*\}|(?<!\w)(?P<dollar>\$\w+)""",
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
    """Binds `{name}` placeholders to `values` and translates the query. zone: of times without one in toDateTime.

    LIMIT is lowered to 50,000. Without one, 101 rows are selected, one more than PostHog returns. Raises `HogQLError`.
    """
    select = _parsed(_bound(query, values))
    _check_tables(select)
    _check_functions(select)
    limited = _limit(select)
    _resolve_fields(select)
    _type_literals(select)
    for call in list(select.find_all(exp.Func)):
        _rewrite(call, zone)
    return Statement(select.sql(dialect="duckdb"), limited)


def _bound(query: str, values: Mapping[str, object]) -> str:
    """Inserts the values as constants, and quotes `$names`, which ClickHouse's grammar does not know."""

    def token(match: re.Match[str]) -> str:
        if match["dollar"]:
            return f"`{match['dollar']}`"
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
    served = {"events"} | {cte.alias for cte in select.find_all(exp.CTE)}
    for table in select.find_all(exp.Table):
        if not isinstance(table.this, exp.Identifier) or table.db or table.name not in served:
            raise HogQLError(f"Unknown table `{table.name or table.sql()}`.")


def _check_functions(select: exp.Select) -> None:
    for call in select.find_all(exp.Func):
        if not isinstance(call, SAME_IN_DUCKDB) and _name(call) not in {*FUNCTIONS, *DATES}:
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
    tables = {"events", *(alias.name for alias in select.find_all(exp.TableAlias))}
    if any(isinstance(column, exp.Star) for column in select.expressions) and not select.find(exp.Subquery, exp.CTE):
        select.select(*FIELDS, append=False, copy=False)
    select.select(*(_named(column) for column in select.expressions), append=False, copy=False)
    chains: list[exp.Dot | exp.Column] = [*select.find_all(exp.Dot), *select.find_all(exp.Column)]
    for node in chains:
        if not isinstance(node.parent, (exp.Dot, exp.Column)) and not isinstance(node.this, exp.Star):
            node.replace(_field([part.name for part in node.parts], tables, known))


def _named(column: exp.Expr) -> exp.Expr:
    if isinstance(column, (exp.Alias, exp.Star)):
        return column
    name = column.name if isinstance(column, (exp.Column, exp.Dot)) else column.sql(dialect="clickhouse")
    return exp.alias_(column, name, quoted=True)


def _field(chain: list[str], tables: set[str], known: set[str]) -> exp.Expr:
    table = chain[0] if len(chain) > 1 and chain[0] in tables else None
    match chain[1:] if table else chain:
        case ["poe" | "person", "properties"]:
            name = "person_properties"
        case [name] if name in known:
            pass
        case rest:
            raise HogQLError(f"Unable to resolve field: {rest[0]}")
    return exp.column(name, table=table, quoted=True)


def _type_literals(select: exp.Select) -> None:
    """Converts text that is compared with a UUID or a time, as ClickHouse does, and IN an empty list to false."""
    for membership in list(select.find_all(exp.In)):
        if not membership.expressions and not membership.args.get("query"):
            membership.replace(exp.false())
    for predicate in list(select.find_all(exp.Predicate)):
        for side, other in list(_compared(predicate)):
            if isinstance(side, exp.Column) and side.name in TYPED and other.is_string:
                other.replace(_call(TYPED[side.name], other.copy()))


def _compared(predicate: exp.Expr) -> Iterator[tuple[exp.Expression, exp.Expr]]:
    left = predicate.this
    for right in [*(predicate.args.get(name) for name in ("expression", "low", "high")), *predicate.expressions]:
        if isinstance(left, exp.Tuple) and isinstance(right, exp.Tuple):
            yield from zip(left.expressions, right.expressions, strict=False)
        elif isinstance(right, exp.Expression):
            yield left, right
            yield right, left


def _rewrite(call: exp.Expr, zone: str) -> None:
    """Replaces toDateTime by a time in UTC; every other function keeps its arguments."""
    if isinstance(call, SAME_IN_DUCKDB):
        return
    name = _name(call)
    if name in DATES:
        call.replace(_moment(call, zone))
    else:
        call.replace(_call(name, *call.expressions))


def _call(name: str, *arguments: exp.Expr) -> exp.Expr:
    return exp.Anonymous(this=name, expressions=list(arguments))


def _moment(call: exp.Expr, zone: str) -> exp.Expr:
    text, *rest = call.expressions
    if not text.is_string:
        raise HogQLError(f"The sandbox serves {call.name} of text only")
    try:
        moment = datetime.fromisoformat(text.name.replace("Z", "+00:00"))
        local = ZoneInfo(rest[-1].name if rest and rest[-1].is_string else zone)
    except ZoneInfoNotFoundError as error:
        raise HogQLError(f"Unknown time zone: {rest[-1].name}") from error
    except ValueError:
        return exp.null()
    utc = (moment if moment.tzinfo else moment.replace(tzinfo=local)).astimezone(UTC)
    return exp.cast(exp.Literal.string(f"{utc:%Y-%m-%d %H:%M:%S.%f}"), "TIMESTAMP")
