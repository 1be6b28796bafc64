"""The lexer reads any text without a gap, and knows what is code and what is not."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_pgdbm.sql.lexer import Token, holds_statement, line_of, statements, tokens

PIECES = [
    *("'", '"', "''", "\\", "$$", "$a$", "$1", "--", "/*", "*/", "\n", "\r\n", ";", "(", ")", "{{", "}}", "{{schema}}"),
    *(
        "E'",
        "U&'",
        'U&"',
        "B'",
        "begin atomic",
        "end",
        "case",
        "select",
        "a$b$",
        "1.5e-3",
        "1..2",
        " ",
        "é",
        "\0",
        "::",
    ),
]
NUMBERS = ["1", "1.5", ".5", "1e10", "1.5E-3", "0x1F", "1_000"]
SQL = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=30).map("".join)


def kinds(sql: str) -> list[tuple[str, str]]:
    return [(token.kind, token.text) for token in tokens(sql) if token.kind != "space"]


@example("E'\\")
@example("$a$ $b$ $a")
@example("/* /* */")
@given(SQL)
def test_tokens_cover_any_text_without_a_gap(sql: str) -> None:
    read = list(tokens(sql))
    assert "".join(token.text for token in read) == sql
    position = 0
    for token in read:
        assert token.start == position < token.end
        assert sql[token.start : token.end] == token.text
        position = token.end


@given(SQL)
def test_statements_of_any_text_are_pieces_of_it_in_order(sql: str) -> None:
    end = 0
    for statement in statements(sql):
        assert statement.start >= end
        end = statement.start + len(statement.text)
        assert sql[statement.start : end] == statement.text
        assert statement.text
        assert statement.line == line_of(sql, statement.start)
    assert holds_statement(sql) == bool(statements(sql))


@pytest.mark.parametrize(
    ("sql", "read"),
    [
        ("a -- b; 'c\nd", [("word", "a"), ("comment", "-- b; 'c"), ("word", "d")]),
        ("a/* /* ' */ ; */b", [("word", "a"), ("comment", "/* /* ' */ ; */"), ("word", "b")]),
        ("'it''s' x", [("string", "'it''s'"), ("word", "x")]),
        ("'a\\' x", [("string", "'a\\'"), ("word", "x")]),
        ("E'a\\'b''c' x", [("string", "E'a\\'b''c'"), ("word", "x")]),
        ("e'a'\n  '\\'b' x", [("string", "e'a'\n  '\\'b'"), ("word", "x")]),
        ("U&'\\0041' B'01' x'1F' n'y'", [("string", s) for s in ("U&'\\0041'", "B'01'", "x'1F'", "n'y'")]),
        ("$$ ; ' $$", [("dollar", "$$ ; ' $$")]),
        ("$a$ $b$ $$ $b$ $a$;", [("dollar", "$a$ $b$ $$ $b$ $a$"), ("symbol", ";")]),
        ("$1$a$x$a$", [("param", "$1"), ("dollar", "$a$x$a$")]),
        ("a$b$ c$$d", [("word", "a$b$"), ("word", "c$$d")]),
        ('"quoted ""idents"" ;"', [("quoted", '"quoted ""idents"" ;"')]),
        ('U&"d\\0061t"', [("quoted", 'U&"d\\0061t"')]),
        (" ".join(NUMBERS), [("number", n) for n in NUMBERS]),
        ("1-2", [("number", "1"), ("symbol", "-"), ("number", "2")]),
        ("a-- b", [("word", "a"), ("comment", "-- b")]),
        ("größe größe", [("word", "größe"), ("word", "größe")]),
        (
            "{{tables.a}}_x {{schema}}.y {{tables.a.b}}",
            [
                ("template", "{{tables.a}}"),
                ("word", "_x"),
                ("template", "{{schema}}"),
                ("symbol", "."),
                ("word", "y"),
                ("template", "{{tables.a.b}}"),
            ],
        ),
    ],
)
def test_each_kind_of_token_is_known(sql: str, read: list[tuple[str, str]]) -> None:
    assert kinds(sql) == read


@pytest.mark.parametrize("sql", ["'a ; b", "E'a\\", '"a ; ', "$a$ ; $b$", "/* ; /* */ ;", "-- ;", "E'a' \n 'b ;"])
def test_what_is_not_closed_runs_to_the_end(sql: str) -> None:
    assert len(kinds(sql)) == 1


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Users", "users"),
        ('"Users"', "Users"),
        ('"a""b"', 'a"b'),
        ('""""', '"'),
        ('U&"x"', "x"),
        ('"open', "open"),
        ("'x'", None),
        ("1", None),
    ],
)
def test_a_name_is_what_postgresql_stores(text: str, name: str | None) -> None:
    assert next(tokens(text)).name == name


def test_a_key_word_is_one_in_any_case_but_not_in_quotes() -> None:
    assert Token("word", "SELECT", 0, 6).is_word("insert", "select")
    assert not next(tokens('"select"')).is_word("select")
    assert not next(tokens("';'")).is_symbol(";")


def test_statements_are_cut_at_semicolons_that_are_code() -> None:
    sql = """-- first; comment
select ';', $$;$$, "a;" /* ; */ ;

  ; ;
/* only a comment; */ ;
create function f() returns void language plpgsql as $$
begin
  perform 1; perform 2;
end $$;
insert into t values (1) -- the last"""
    assert [(s.line, s.text.split("\n")[0]) for s in statements(sql)] == [
        (2, "select ';', $$;$$, \"a;\""),
        (6, "create function f() returns void language plpgsql as $$"),
        (10, "insert into t values (1)"),
    ]


def test_a_body_of_the_sql_standard_is_one_statement() -> None:
    sql = """create function f(a int) returns int language sql
begin atomic
  insert into t values (a);
  select case when a > 0 then 1 else 2 end;
end;
create procedure p() begin atomic select 1; end;
begin; select 1; end;
select 2"""
    assert [(s.line, s.text.split()[0], s.text.split()[-1]) for s in statements(sql)] == [
        (1, "create", "end"),
        (6, "create", "end"),
        (7, "begin", "begin"),
        (7, "select", "1"),
        (7, "end", "end"),
        (8, "select", "2"),
    ]


def test_a_rule_with_several_actions_is_one_statement() -> None:
    sql = "create rule r as on insert to t do also (insert into a values (1); insert into b values (2)); select 1"
    assert [s.text[:6] for s in statements(sql)] == ["create", "select"]


def test_an_unmatched_parenthesis_does_not_hide_what_follows() -> None:
    assert [s.text for s in statements("select 1); select 2")] == ["select 1)", "select 2"]


@pytest.mark.parametrize(("position", "line"), [(0, 1), (1, 1), (2, 2), (4, 3), (99, 3), (-1, 1)])
def test_lines_are_counted_from_one(position: int, line: int) -> None:
    assert line_of("a\nb\nc", position) == line


def test_long_texts_are_read_in_linear_time() -> None:
    for piece in ("'", "''", "E'\\''", "/*", "$a", "$a$", "{{", '"', "1e", "-", "E'a'\n", "x;", "(", "\n"):
        statements(piece * 20_000)
