"""Templates: which services a text names, and the text with schemas in their place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pgdbm.core import EXPLICIT_TABLE_PATTERN

from pytest_pgdbm.sql.templates import Reference, service_for, services_named, with_schemas

SQL = """create table {{tables.orders}} (
  user_id int references {{tables.users.accounts}} (id)  -- not {{tables.comments.x}}
);
/* nor {{tables.comments.y}} */
comment on table {{tables.orders}} is 'see {{tables.strings.z}} -- still text';
create function {{schema}}.f() returns void language plpgsql as $body$
begin
  -- nor here {{tables.comments.z}}
  execute $q$ select 1 from
    {{tables.billing.invoices}} $q$;
end $body$;
select * from {{tables.users.accounts}};
"""


def test_services_are_found_in_code_strings_and_bodies_but_not_in_comments() -> None:
    assert services_named(SQL) == [
        Reference("users", "accounts", 2),
        Reference("strings", "z", 5),
        Reference("billing", "invoices", 10),
        Reference("users", "accounts", 12),
    ]


@pytest.mark.parametrize(
    "sql", ["", "select 1", "{{tables.users}}", "{{schema}}", "{{tables.a-b.c}}", "{{ tables.a.b }}", "{{tables.a.}}"]
)
def test_other_templates_name_no_service(sql: str) -> None:
    assert services_named(sql) == []


def test_an_unclosed_body_is_read_to_its_end() -> None:
    assert services_named("do $$ {{tables.a.b}}") == [Reference("a", "b", 1)]
    assert services_named("$a$") == services_named("$a$ {{tables.") == []


def test_schemas_stand_in_for_services_and_the_template_stays_one() -> None:
    sql = (
        "select 1 from {{tables.users.a}},\n {{tables.other.b}}, {{tables.c}}, '{{tables.order_items.d}}' -- {{schema}}"
    )
    schemas = {"users": "pgdbm_1_users", "order-items": "pgdbm_2_order_items"}
    assert with_schemas(sql, schemas) == (
        "select 1 from {{tables.pgdbm_1_users.a}},\n {{tables.other.b}}, {{tables.c}},"
        " '{{tables.pgdbm_2_order_items.d}}' -- {{schema}}"
    )


def test_a_text_without_templates_is_returned_as_it_is() -> None:
    sql = "select 1 from users"
    assert with_schemas(sql, {"users": "x"}) is sql


@pytest.mark.parametrize(
    ("name", "services", "found"),
    [
        ("users", ["users", "orders"], "users"),
        ("order_items", ["order-items"], "order-items"),
        ("order_items", ["order-items", "order_items"], "order_items"),
        ("order_items", ["order-items", "Order Items"], None),
        ("users", ["Users"], "Users"),
        ("Users", ["users"], None),
        ("users", [], None),
    ],
)
def test_a_service_is_meant_by_its_name_or_its_plain_form(name: str, services: list[str], found: str | None) -> None:
    assert service_for(name, services) == found


@given(
    st.lists(st.sampled_from(["{{tables.a.t}}", "{{tables.b.t}}", "{{tables.a}}", "\n", "x", "{", "."])).map("".join)
)
def test_pgdbm_finds_as_many_templates_in_as_many_lines_afterwards(sql: str) -> None:
    replaced = with_schemas(sql, {"a": "pgdbm_1_a"})
    assert replaced.count("\n") == sql.count("\n")
    before = EXPLICIT_TABLE_PATTERN.findall(sql)
    after = EXPLICIT_TABLE_PATTERN.findall(replaced)
    assert after == [("pgdbm_1_a" if service == "a" else service, table) for service, table in before]
