"""Services to measure with: numbered migrations like those of a real service, as many as asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROWS = 10
"""The rows that the last migration puts into the first table."""


def write(folder: Path, count: int) -> Path:
    """Writes `count` migrations (at least three) into `folder`/`count`; two of three make a table."""
    target = folder / str(count)
    target.mkdir(parents=True)
    for number, sql in enumerate(_migrations(count), 1):
        (target / f"{number:03d}_step.sql").write_text(sql + "\n")
    return target


def _migrations(count: int) -> Iterator[str]:
    tables = 2 * count // 3
    yield from (_table(number) for number in range(tables))
    rest = count - tables - 1
    if rest:
        yield _TRIGGER
    yield from (_column(number) for number in range(rest - 1))
    yield f"INSERT INTO {{{{tables.t0}}}} (email) SELECT 'row' || n FROM generate_series(1, {ROWS}) n;"


def _table(number: int) -> str:
    parent = f",\n    parent_id integer REFERENCES {{{{tables.t{number - 1}}}}} (id)" if number else ""
    return f"""\
CREATE TABLE {{{{tables.t{number}}}}} (
    id serial PRIMARY KEY,
    email varchar(255) NOT NULL UNIQUE,
    body text,
    created_at timestamptz NOT NULL DEFAULT now(){parent}
);
CREATE INDEX t{number}_created_at ON {{{{tables.t{number}}}}} (created_at DESC);"""


_TRIGGER = """\
CREATE FUNCTION {{schema}}.touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.created_at = now();
    RETURN NEW;
END $$;
CREATE TRIGGER touch BEFORE UPDATE ON {{tables.t0}} FOR EACH ROW EXECUTE FUNCTION {{schema}}.touch();"""


def _column(number: int) -> str:
    return f"ALTER TABLE {{{{tables.t{number}}}}} ADD COLUMN extra jsonb NOT NULL DEFAULT '{{}}';"
