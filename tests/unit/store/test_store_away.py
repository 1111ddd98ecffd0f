"""A host that goes: its database keeps what it has promised, and nobody waits for it longer than a lease lasts."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.engine import make_url

from s2d.store.database import DATABASE_AWAY, NETWORK_PATIENCE, Database

FULL = 2


def test_sqlite_waits_for_the_disk_at_every_commit(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 's2d.db'}")
    for begin in (database.begin, database.read):
        with begin() as session:
            assert session.scalar(text("PRAGMA synchronous")) == FULL
            assert session.scalar(text("PRAGMA journal_mode")) == "wal"
    database.close()


class NotNow(Exception):
    """Raised where a connection would be made."""


def parameters(url: str) -> dict[str, Any]:
    """What the driver would be given."""
    database, given = Database(url), dict[str, Any]()

    @event.listens_for(database.engine, "do_connect")
    def note(_dialect: Any, _record: Any, _arguments: Any, named: dict[str, Any]) -> None:
        given.update(named)
        raise NotNow

    with pytest.raises(NotNow), database.read() as session:
        session.execute(text("SELECT 1"))
    return given


def test_nobody_waits_for_a_vanished_database_longer_than_this_unless_its_url_says_so() -> None:
    plain = parameters("postgresql+psycopg://s2d@db/s2d")
    assert plain.items() >= NETWORK_PATIENCE.items()
    own = parameters("postgresql+psycopg://s2d@db/s2d?connect_timeout=60&tcp_user_timeout=0&sslmode=require")
    changed = {"connect_timeout": "60", "tcp_user_timeout": "0", "sslmode": "require"}
    assert own.items() >= {**NETWORK_PATIENCE, **changed}.items()


@contextmanager
def over_tcp(path: Path) -> Iterator[int]:
    """The server on this unix socket, on a port of its own."""

    def copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, server = listener.accept()[0], socket.socket(socket.AF_UNIX)
                server.connect(str(path))
                for pair in ((caller, server), (server, caller)):
                    threading.Thread(target=copy, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        # `close` alone would leave the thread in `accept`.
        listener.shutdown(socket.SHUT_RDWR)


def test_a_connection_over_tcp_is_given_up_by_the_kernel(postgres_template: str) -> None:
    url = make_url(postgres_template.format(name="postgres"))
    with over_tcp(Path(str(url.query["host"])) / f".s.PGSQL.{url.port or 5432}") as port:
        database = Database(url.set(host="127.0.0.1", port=port, query={}))
        with database.read() as session:
            connection = session.connection().connection.driver_connection
            assert connection is not None
            assert session.scalar(text("SELECT 1")) == 1
            with socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as own:
                assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                options = ("TCP_USER_TIMEOUT", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
                found = [own.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in options]
        database.close()
    assert found == [10_000, 5, 3, 3]


def test_a_server_that_takes_a_connection_and_says_nothing_is_away_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        database = Database(f"postgresql+psycopg://s2d@127.0.0.1:{port}/s2d?connect_timeout=2")
        began = time.monotonic()
        with pytest.raises(DATABASE_AWAY), database.read() as session:
            session.execute(text("SELECT 1"))
        assert time.monotonic() - began < 20
        database.close()
