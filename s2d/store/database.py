"""The connection to SQLite or PostgreSQL, the database's own clock, and the schema's migrations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Float, create_engine, event, text
from sqlalchemy.engine import URL, Engine, ExceptionContext, make_url
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import FunctionElement

from s2d.errors import InvalidRequest
from s2d.store.tenancy import bind

#: What SQLAlchemy raises while a server is gone, going, or out of connections.
DATABASE_AWAY = (OperationalError, InterfaceError, TimeoutError)
MIGRATIONS = Path(__file__).parent / "migrations"
#: A process that is stopped in the middle of a transaction would keep its rows locked, a job that others are to take
#: over among them, for as long as it sleeps. PostgreSQL ends its session after so many seconds.
MOST_IDLE_S = 10
#: PostgreSQL's codes (appendix A, class 25) for that, and for a server that has become a standby: both are answered by
#: connecting anew.
IDLE_TOO_LONG, READ_ONLY = "25P03", "25006"
#: A database's host that vanishes (no power, a cut cable) says nothing. TCP alone waits a quarter of an hour for the
#: answer to what was sent, and where nothing was sent two hours or for ever; meanwhile no lease is renewed and no other
#: connection is tried. In seconds, the last in milliseconds; libpq ignores them on a unix socket.
NETWORK_PATIENCE = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}


class db_now(FunctionElement[float]):  # noqa: N801 - reads as the SQL function that it is
    """Seconds since the epoch on the database's clock, so that hosts need not agree on the time."""

    type = Float()
    inherit_cache = True


@compiles(db_now, "sqlite")
def _now_sqlite(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(db_now, "postgresql")
def _now_postgresql(*_: Any, **__: Any) -> str:
    return "extract(epoch from clock_timestamp())"


class Database:
    """One engine. `begin()` gives a session in a transaction that commits on success and rolls back on error.

    `of(tenant)` is the same database with sessions that see that tenant's rows only.
    """

    tenant: str | None = None

    def __init__(self, url: str | URL) -> None:
        self.url = make_url(url)
        if self.url.get_backend_name() not in ("sqlite", "postgresql"):
            raise InvalidRequest(
                f"S2D_DATABASE_URL names {self.url.get_backend_name()!r}; use sqlite:///… or postgresql+psycopg://…"
            )
        self.engine = _engine(self.url)

    def of(self, tenant: str) -> Database:
        """This database as the tenant sees it. It shares the connections, so it must not be closed by itself."""
        seen = copy(self)
        seen.tenant = tenant
        return seen

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """A transaction. On SQLite it takes the write lock at once, so that it never fails to upgrade later."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            bind(session, self.tenant)
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads: on SQLite it takes no write lock, so readers never wait for each other."""
        with Session(self.engine.execution_options(s2d_read=True), expire_on_commit=False) as session, session.begin():
            bind(session, self.tenant)
            yield session

    def migrate(self, revision: str = "head") -> None:
        """Bring the schema up to a revision; safe to call from several processes at once."""
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        # One connection is handed over so that env.py locks and migrates in one transaction.
        with self.engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)

    def close(self) -> None:
        self.engine.dispose()


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "postgresql":
        patience = {name: value for name, value in NETWORK_PATIENCE.items() if name not in url.query}
        engine = create_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=20, connect_args=patience)
        event.listen(engine, "connect", _postgres_connect)
        event.listen(engine, "handle_error", _postgres_error)
        return engine
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})
    event.listen(engine, "connect", _sqlite_connect)
    event.listen(engine, "begin", _sqlite_begin)
    return engine


def endure_pauses(session: Session) -> None:
    """Let this transaction be idle for as long as it takes: what it holds guards work outside of the database."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))


def _postgres_connect(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{MOST_IDLE_S}s'")
    connection.commit()


def _postgres_error(context: ExceptionContext) -> OperationalError | None:
    """What the driver takes for an error of ours is a server that is away, like any other lost connection."""
    if getattr(context.original_exception, "sqlstate", None) not in (IDLE_TOO_LONG, READ_ONLY):
        return None
    context.is_disconnect = True
    return OperationalError(context.statement, context.parameters, context.original_exception)


def _sqlite_connect(connection: Any, _record: Any) -> None:
    # autocommit at the driver: SQLAlchemy's BEGIN below is the only one.
    connection.isolation_level = None
    # FULL: with NORMAL, commits of the last moments go with the host's power, and with them a job whose 202 was sent or
    # the end of an API key that was revoked.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection: Any) -> None:
    # IMMEDIATE: a read that later writes cannot then fail with "database is locked" (SQLite docs, lang_transaction).
    read = connection.get_execution_options().get("s2d_read", False)
    connection.exec_driver_sql("BEGIN" if read else "BEGIN IMMEDIATE")
