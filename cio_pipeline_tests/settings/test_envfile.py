"""`.env`: what can be read with certainty is, and all else is refused by file and line, never quoted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.settings.envfile import read_env_file
from cio_pipeline.settings.errors import SettingsError


def read(folder: Path, content: str | bytes) -> dict[str, str]:
    path = folder / ".env"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_env_file(path)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("X=a", "a"),
        ("X=", ""),
        ("X=   ", ""),
        ("  X = a b  ", "a b"),
        ("export X=a", "a"),
        ("X='a; \"b\" #c ${d} \\n'", 'a; "b" #c ${d} \\n'),
        ('X="a #b; it\'s"', "a #b; it's"),
        ("X='a' # a comment", "a"),
        ("X=a # a comment", "a"),
        ("X=a ## a comment", "a"),
        ("X= # a comment", ""),
        ("X=a#b", "a#b"),
        ("X=$*,utm_*,$pageview", "$*,utm_*,$pageview"),
        ('X=["a","b c"]', '["a","b c"]'),
        ("X=postgresql://u:p%40@h/d?a=b", "postgresql://u:p%40@h/d?a=b"),
        ("X=Größe", "Größe"),
        ("\ufeffX=a", "a"),
        ("X=a\r", "a"),
    ],
)
def test_a_line_that_can_mean_one_thing_only_is_read(tmp_path: Path, line: str, value: str) -> None:
    assert read(tmp_path, f"# first\n\n{line}\nY=z\n" if line[0] != "\ufeff" else line + "\nY=z") == {"X": value, "Y": "z"}


@pytest.mark.parametrize(
    "line",
    [
        'X="/secret',
        "X='/secret",
        'X=/secret"',
        'X="secret", "b"',
        "X='secret' b",
        'X="secret"b',
        "X='secret'#b",
        "X: secret",
        "X: secret=b",
        "X secret",
        "secret",
        "X=secret;",
        "X==secret",
        "X-Y=secret",
        "1X=secret",
        "=secret",
        "'X'=secret",
        "set X=secret",
        "X Y=secret",
        "X=${secret}",
        'X="${secret}"',
        "X=$(secret)",
        "X=`secret`",
        'X="a\\nsecret"',
        "X=secret\\",
        "X=#secret",
        "X=secret #1",
        "X=it's secret",
        "X=“secret”",
        "X=‘secret’",  # noqa: RUF001
        "X=„secret“",
        "X=sec\0ret",
        "X=sec\x1bret",
        "X=a\rY=secret",
        "# a comment\rX=secret",
        "X=a\u2028Y=secret",
        "<<<<<<< secret",
        "=======",
        "X\u200b=secret",
        b"X=secret\xff",
        "X=secret".encode("utf-16"),
    ],
)
def test_any_other_line_is_refused_by_its_number_and_never_quoted(tmp_path: Path, line: str | bytes) -> None:
    content = b"A=1\n\n" + (line.encode() if isinstance(line, str) else line) + b"\nB=2\n"
    with pytest.raises(SettingsError, match=r"\.env, line 3 cannot be read with certainty: .+\.$") as refused:
        read(tmp_path, content)
    assert "secret" not in str(refused.value)
    assert refused.value.__suppress_context__


def test_a_name_that_stands_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"\.env, line 4: X is already set in line 1\.$"):
        read(tmp_path, "X=a\nY=b\n\nX=a\n")


def test_no_file_says_nothing_and_a_folder_or_a_dangling_link_is_refused(tmp_path: Path) -> None:
    assert read_env_file(tmp_path / ".env") == {}
    (tmp_path / ".env").symlink_to(tmp_path / "gone")
    with pytest.raises(SettingsError, match=r"\.env cannot be read"):
        read_env_file(tmp_path / ".env")
    (tmp_path / ".env").unlink()
    (tmp_path / ".env").mkdir()
    with pytest.raises(SettingsError, match=r"\.env cannot be read"):
        read_env_file(tmp_path / ".env")


@given(st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*", fullmatch=True), st.text('abc #;"\\$`{}()=,“', max_size=8)))
def test_what_stands_in_single_quotes_is_taken_by_the_letter(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, str]
) -> None:
    content = "".join(f"{name}='{value}'\n" for name, value in values.items())
    assert read(tmp_path_factory.getbasetemp(), content) == values


@given(st.text(max_size=40))
def test_whatever_stands_there_is_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    try:
        found = read(tmp_path_factory.getbasetemp(), text.encode("utf-8", "surrogatepass"))
    except SettingsError as refused:
        assert re.search(r"\.env, line \d+", str(refused))  # noqa: PT017
        assert "\n" not in str(refused)  # noqa: PT017
    else:
        assert all(f"{name}" in text and value in text for name, value in found.items())
