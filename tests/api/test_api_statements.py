"""Statements on the event loop: numbered parameters, connections that come back, an error that says that none does."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text

from api.errors import DatabaseAway
from api.store.session import Sessions
from api.store.statements import Statement, Statements, understood

ONE = Statement.of("SELECT %(a)s::int + %(b)s::int * %(a)s::int")


def _run(database_url: str, *works: Any) -> list[Any]:
    async def all_of_them() -> list[Any]:
        statements = Statements(database_url)
        async with statements.open():
            return [await work(statements) for work in works]

    return asyncio.run(all_of_them())


def _answer(statement: Statement, **values: Any) -> Any:
    def work(statements: Statements) -> Coroutine[Any, Any, Any]:
        return statements.row(statement, values)

    return work


def test_named_parameters_are_numbered_once_each() -> None:
    assert ONE == ("SELECT $1::int + $2::int * $1::int", ("a", "b"))


def test_a_url_is_freed_of_what_only_libpq_understands() -> None:
    url = "postgresql://u:p%40@h:5/d?connect_timeout=5&sslmode=require&keepalives_idle=3&options=-c%20x%3D1"
    assert understood(url) == "postgresql://u:p%40@h:5/d?sslmode=require&options=-c+x%3D1"
    assert understood("postgresql://u@h/d") == "postgresql://u@h/d"


@pytest.mark.integration
def test_a_row_or_none(database_url: str) -> None:
    nothing = _answer(Statement.of("SELECT 1 WHERE %(a)s::bool"), a=False)
    assert _run(database_url, _answer(ONE, a=2, b=3), nothing) == [(8,), None]


@pytest.mark.integration
def test_a_connection_that_the_server_ended_is_replaced(database_url: str, sessions: Sessions) -> None:
    pid = Statement.of("SELECT pg_backend_pid()")

    async def end(statements: Statements) -> None:
        row = await statements.row(pid, {})
        assert row is not None
        with sessions.begin() as session:
            session.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": row[0]})
        await asyncio.sleep(0.1)

    assert _run(database_url, end, _answer(ONE, a=1, b=1))[1] == (2,)


@pytest.mark.integration
def test_an_error_leaves_nothing_behind(database_url: str) -> None:
    """Each statement is its own transaction: what fails is undone, and the connection serves the next one."""

    wrong = Statement.of("SELECT set_config('lathe.x', '1', true), 1 / 0")

    async def fail(statements: Statements) -> None:
        with pytest.raises(asyncpg.DivisionByZeroError):
            await statements.row(wrong, {})

    left = Statement.of("SELECT current_setting('lathe.x', true)")
    assert _run(database_url, fail, _answer(left))[1] in {(None,), ("",)}


def test_a_database_that_is_away_is_said_so() -> None:
    with pytest.raises(DatabaseAway) as raised:
        _run("postgresql://u:hunter22@127.0.0.1:9/none", _answer(ONE, a=1, b=1))
    assert "hunter22" not in str(raised.value)
