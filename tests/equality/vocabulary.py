"""How rows get into the tables of `migrations`, and how they are changed.

`<depot>` stands for the schema of the service `depot`. What a reset may not manage without building the set anew is
said with each table: nothing, unless that is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Cost = Literal["never", "ordinary", "any"]
"""Whose set may have to be built anew: nobody's, an ordinary role's, anybody's."""


@dataclass(frozen=True)
class Table:
    """A table that tests write to. `values` and `change` are SQL; `i` is a number that makes a row's key.

    `key` is an integer of each row.
    """

    name: str
    columns: str
    values: str
    change: str
    key: str
    cost: Cost = "never"

    def insert(self, first: int, count: int, more: str = "") -> str:
        """Inserts so many rows."""
        return (
            f"insert into {self.name} ({self.columns}) select {self.values}"
            f" from generate_series({first}, {first + count - 1}) i {more}"
        ).rstrip()

    def update(self, modulus: int, remainder: int = 0) -> str:
        """Updates every so-manieth row."""
        return f"update {self.name} set {self.change} where {self.key} % {modulus} = {remainder}"

    def delete(self, modulus: int, remainder: int = 0) -> str:
        """Deletes every so-manieth row."""
        return f"delete from {self.name} where {self.key} % {modulus} = {remainder}"


_ITEM = "(select id from <depot>.items order by id limit 1)"
_ORDER = "(select id from <shop>.orders order by id limit 1)"

DEPOT = [
    Table(
        "<depot>.items",
        "code, name, stock, feeling, made_at, cost, tags, extra, note",
        "'c' || i, repeat('n', i % 50), i % 7, 'sad', row('s' || i, i)::<depot>.place, '[1,2)', array['t' || i % 5],"
        " '{\"a\": 1}', 'x'",
        "name = name || 'x', stock = coalesce(stock, 0) + 1",
        "id",
    ),
    Table("<depot>.suppliers", "name, boss", "'s' || i, 5011", "name = name || '!'", "id"),
    Table("<depot>.readings", "taken, value", "'2021-01-01', i", "value = value + 1", "id"),
    Table("<depot>.documents", "id, body", "1000 + i, repeat('d', i % 900)", "body = body || 'z'", "id"),
    Table("<depot>.scans", "body, raw", "repeat(md5(i::text), 300), 'r'", "body = body || 'z'", "id"),
    Table("<depot>.events", "what, n", "'e' || i, i", "what = what || '+'", "n"),
    Table("<depot>.odd_values", "v, a", "'o' || i, array[i, null]", "v = v || '+'", "coalesce(a[1], 0)"),
    Table("<depot>.visits", "what", "'v' || i", "what = what || '+'", "id"),
    Table("<depot>.parts", "k, v", "i % 30, case i % 3 when 0 then 'x' when 1 then 'z' end", "k = (k + 7) % 30", "n"),
    Table("<depot>.animals", "name", "'a' || i", "name = name || '+'", "id"),
    Table("<depot>.dogs", "name, bark", "'d' || i, 'wau'", "bark = bark || '+'", "id"),
    Table('<depot>."Odd ""Name""; --"', '"select", "two words"', "'q' || i, i", '"select" = "select" || 1', "id"),
    Table("<depot>.typed", "street, zip", "'st' || i, i", "street = street || '+'", "zip"),
    Table("<depot>.keyless", "a, b", "i, 'b'", "b = b || '+'", "a"),
    Table("<depot>.clustered", "id, v", "100 + i, repeat('c', i % 30)", "v = v || '+'", "id"),
    Table("<depot>.numbered", "v", "'n' || i", "v = v || '+'", "n"),
    Table("<depot>.changed", "id, v", "i, 'c'", "v = v || '+'", "id"),
]

SHOP = [
    Table("<shop>.orders", "item, qty", f"{_ITEM}, 1 + i % 90", "state = state || '+'", "id"),
    Table("<shop>.lines", "order_id, n, what", f"{_ORDER}, i, 'w' || i", "what = what || '+'", "n"),
    Table("<shop>.returns", "order_id, why", f"{_ORDER}, 'y' || i", "why = why || '+'", "id"),
    Table("<shop>.invoices", "order_id", _ORDER, "order_id = order_id", "id"),
    Table("<shop>.hens", "id, egg", "10 + i, 2", "egg = null", "id", "ordinary"),
    Table("<shop>.eggs", "id, hen", "10 + i, 1", "hen = null", "id", "ordinary"),
    Table("<shop>.husbands", "id, wife", "i, i", "wife = id", "id"),
    Table("<shop>.wives", "id, husband", "i, i", "husband = id", "id"),
    Table("<shop>.bookings", "during", "int4range(i * 10, i * 10 + 5)", "during = during", "id"),
    Table("<shop>.spots", "at", "point(i * 37 % 100, i * 91 % 101)", "at = point(at[1], at[0])", "id"),
    Table("<shop>.prefixes", "word", "md5((i % 50)::text)", "word = word || 'x'", "id"),
    Table("<shop>.journal", "what", "'j' || i", "what = what || '+'", "id"),
    Table("<shop>.watched", "v", "'w' || i", "v = v || '+'", "id", "ordinary"),
    Table("<shop>.ruled", "id, v", "i, 'r'", "v = v || '+'", "id"),
    Table("<shop>.own_rows", "v", "'o' || i", "v = v || '+'", "id"),
    Table("<shop>.shouted", "v", "'s' || i", "v = v || '+'", "id", "ordinary"),
    Table("<shop>.open_orders", "code, qty", "'c' || i, i", "state = state", "id"),
    Table("<shop>.counters", "name, n", "'k' || i, i", "n = n + 1", "n"),
]

VAULT = [
    Table("<vault>.base", "id", "case i % 3 when 0 then 5011 when 1 then 5021 else 5050 end", "id = id", "id"),
    Table("<vault>.append_only", "v", "'a' || i", "v = v || '+'", "id", "ordinary"),
    Table("<vault>.always_kept", "v", "'a' || i", "v = v || '+'", "id", "any"),
    Table("<vault>.always_traced", "v", "'a' || i", "v = v || '+'", "id", "any"),
    Table("<vault>.replica_traced", "v", "'a' || i", "v = v || '+'", "id", "any"),
    Table("<vault>.late_traced", "v", "'a' || i", "v = v || '+'", "id", "ordinary"),
    Table("<vault>.never_deleted", "v", "'a' || i", "v = v || '+'", "id", "ordinary"),
    Table("<vault>.always_ruled", "v", "'a' || i", "v = v || '+'", "id", "any"),
    Table("<vault>.unseen", "v", "'a' || i", "v = v || '+'", "id", "ordinary"),
    Table("<vault>.half_seen", "v", "'a' || i", "v = v || '+'", "id", "ordinary"),
    Table("<vault>.published", "a, b", "i, 'b'", "b = b || '+'", "a", "any"),
]

SEQUENCES = [
    *("<depot>.tickets", "<depot>.turns", "<depot>.down", "<depot>.used", "<depot>.set_back", "<depot>.spent"),
    *("<depot>.items_id_seq", "<depot>.readings_id_seq", "<depot>.events_id_seq", "<depot>.parts_n_seq"),
    *("<depot>.visits_id_seq", "<shop>.orders_id_seq", "<shop>.journal_id_seq", "<depot>.schema_migrations_id_seq"),
]

IDENTITIES = ["<depot>.suppliers", "<depot>.readings", "<depot>.events"]
"""Tables whose column `id` is one."""
