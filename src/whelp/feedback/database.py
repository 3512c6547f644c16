"""Opening a database of judgements: a SQLite file, or a PostgreSQL server."""

from __future__ import annotations

import os
import sqlite3
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from whelp.errors import ConfigError

WAIT_SECONDS = 30
DATABASE_VARIABLE, DEFAULT_DATABASE = "WHELP_DATABASE", "feedback.db"


def default_database() -> str:
    """What the environment names, or a file in the folder where the command runs."""
    return os.environ.get(DATABASE_VARIABLE) or DEFAULT_DATABASE


def open_database(database: str) -> Engine:
    """With its tables made or brought up to date. A transaction that will write takes the execution option `writes`.

    Raises `ConfigError` where the database cannot be opened.
    """
    engine = _engine(database)
    try:
        with engine.execution_options(writes=True).begin() as connection:
            _migrate(connection)
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
        raise ConfigError(f"the database {_shown(database)} cannot be used: {reason}") from error
    return engine


def _migrate(connection: Connection, revision: str = "head") -> None:
    from alembic import command
    from alembic.config import Config

    if connection.dialect.name == "postgresql":  # of two servers that start at once one makes the tables
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7411)")
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    command.upgrade(config, revision)


def _engine(database: str) -> Engine:
    if "://" not in database:
        file = Path(database).expanduser().absolute()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the database {file} cannot be made: {error.strerror}") from error
        database = f"sqlite:///{file}"
    try:
        url = make_url(database)
    except ArgumentError as error:
        raise ConfigError(
            f"{database[:60]!r} is no database; expected a file or postgresql://user:password@host/name."
        ) from error
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": WAIT_SECONDS})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if url.get_backend_name() != "postgresql":
        raise ConfigError(f"the database is {url.get_backend_name()}; expected a SQLite file or postgresql://...")
    if find_spec("psycopg") is None:
        raise ConfigError("PostgreSQL needs a driver: pip install 'whelp[postgres]'")
    return create_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True)


def _prepare_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    """A transaction that reads first and writes later fails where another has written between: one that will write waits for its
    turn at once."""
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _shown(database: str) -> str:
    """Without its password."""
    return make_url(database).render_as_string() if "://" in database else database
