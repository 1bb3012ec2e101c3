"""The database: SQLite in a file for one machine, Postgres for many, by one setting.

Everything that is promised to somebody is a row before it is promised. A connection is taken for
each use; `Index.write` is one transaction; a database that cannot be reached is told as such, so
that a front door can say "later" instead of losing what it was sent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, Insert, Table, create_engine, event, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from contourcast.service.index.tables import SCHEMA_VERSION, metadata, schema_version
from contourcast.service.problems import BusyError, DiskFullError, SettingsError

# Seconds that a writer waits for another one's transaction.
WAIT_S: Final = 30
CONNECT_S: Final = 5
CONNECTIONS: Final = 24
# A session of which nothing is heard for so long is ended by Postgres, and its locks are free: its
# process is frozen, or its machine lost its power and could not say so.
SILENT_S: Final = 60
# Whoever holds a lock for longer says so often that it is still there.
AWAKE_S: Final = 15.0
SQLITE_FULL: Final = "SQLITE_FULL"
POSTGRES_DISK_FULL: Final = "53100"  # PostgreSQL Appendix A, Class 53

# Seconds since 1970 by the clock that all machines share.
DATABASE_CLOCK: Final = {
    "sqlite": "SELECT (julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)",
}


class Index:
    """The tables of `contourcast.service.index.tables`, wherever they lie.

    Args:
        url: ``sqlite:///FILE`` or ``postgresql://USER@HOST/NAME``.

    Raises:
        SettingsError: The address is of no database that we know, or its tables are newer than us.
        BusyError: It cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        self.engine = _engine(url)
        with self.write() as at:
            self.in_turn(at, "schema")  # two that start at once make the tables one by one
            metadata.create_all(at)
            for table in metadata.sorted_tables:  # of tables that are there, that adds none
                for index in table.indexes:
                    index.create(at, checkfirst=True)
            known = at.execute(select(schema_version.c.version)).scalar()
            if known is None:
                at.execute(schema_version.insert().values(version=SCHEMA_VERSION))
            elif known > SCHEMA_VERSION:
                raise SettingsError(
                    f"a newer version made the index (schema {known}, ours {SCHEMA_VERSION})",
                    remedy="run that version, or name another database",
                )

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees what was committed.

        Raises:
            BusyError: The database cannot be reached.
        """
        with _told(), self.engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: all of it, or nothing.

        Raises:
            BusyError: The database cannot be reached, or was held by others for too long.
            DiskFullError: It cannot grow.
        """
        with _told(), self.engine.connect() as connection:
            if not self.is_sqlite:
                with connection.begin():
                    yield connection
                return
            # SQLite would let two read and then refuse one of them; so writers queue up first
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")

    def insert_new(self, table: Table, row: dict[str, Any]) -> Insert:
        """An INSERT that does nothing where such a row is there already, in either dialect.

        Its ``rowcount`` says whether it did; for Postgres SQLAlchemy keeps it only when asked to.
        """
        if self.is_sqlite:
            return sqlite.insert(table).values(**row).on_conflict_do_nothing()
        new = postgresql.insert(table).values(**row).on_conflict_do_nothing()
        return new.execution_options(preserve_rowcount=True)

    def in_turn(self, at: Connection, name: str) -> None:
        """Until this transaction ends nobody else is in one of that name (SQLite: in any)."""
        if not self.is_sqlite:
            at.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": lock_key(name)})

    def clock_s(self) -> float:
        """Seconds since 1970 by the database's clock: the one clock that all machines share."""
        with self.read() as at:
            return _clock_s(at)

    def now(self, at: Connection | None = None) -> datetime:
        """The time by the database's clock, in UTC; what is compared across machines is of it.

        Args:
            at: A connection that is there already.
        """
        return datetime.fromtimestamp(self.clock_s() if at is None else _clock_s(at), UTC)

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[bool]:
        """Whether this is the only one, on any machine, that does what the name says just now.

        The database frees the name when the holder dies, however it dies, and on Postgres also
        when it is frozen (there an advisory lock of the session; with SQLite a lock on a file
        beside it).

        Raises:
            BusyError: The database cannot be reached, or took the lock away from a holder of whom
                it had heard nothing for too long.
        """
        if self.is_sqlite:
            with _file_lock(Path(f"{make_url(self.url).database}.{name}.lock")) as held:
                yield held
            return
        with _told(), self.engine.connect() as at:
            held = bool(
                at.execute(
                    text("SELECT pg_try_advisory_lock(:key)"), {"key": lock_key(name)}
                ).scalar_one()
            )
            if held:
                at.execute(text(f"SET idle_session_timeout = '{SILENT_S}s'"))
            at.commit()
            if not held:
                yield False
                return
            try:
                with _awake(at):
                    yield True
            finally:
                if not at.invalidated and not at.closed:
                    at.execute(text("RESET idle_session_timeout"))
                    at.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": lock_key(name)})
                    at.commit()
            if at.invalidated:  # noticed while saying that we are awake
                raise _unreachable()

    def close(self) -> None:
        """Lets go of all connections."""
        self.engine.dispose()


@contextlib.contextmanager
def _awake(at: Connection) -> Iterator[None]:
    """Says on a connection, which nobody else uses meanwhile, that its holder is there."""
    done = threading.Event()

    def say() -> None:
        while not done.wait(AWAKE_S):
            try:
                at.execute(text("SELECT 1"))
                at.commit()
            except SQLAlchemyError:  # it is told when the lock is given back
                return

    saying = threading.Thread(target=say, name="awake", daemon=True)
    saying.start()
    try:
        yield
    finally:
        done.set()
        saying.join()


def lock_key(name: str) -> int:
    """A name as a 63 bit number, for Postgres's advisory locks."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def now() -> datetime:
    """The time by this machine's clock, in UTC; for what is shown, not for what is compared."""
    return datetime.now(UTC)


def _clock_s(at: Connection) -> float:
    return float(at.execute(text(DATABASE_CLOCK[at.dialect.name])).scalar_one())


def _engine(url: str) -> Engine:
    backend = make_url(url).get_backend_name()
    if backend not in DATABASE_CLOCK:
        raise SettingsError(
            f"'{backend}' is no database that can hold the index",
            remedy="name sqlite:///FILE or postgresql://USER@HOST/NAME: CONTOURCAST_DATABASE_URL",
        )
    if backend == "sqlite":
        engine = create_engine(
            url,
            isolation_level="AUTOCOMMIT",
            connect_args={"timeout": WAIT_S},
            poolclass=NullPool,  # one that was kept would go on with a file that was moved away
        )
        event.listen(engine, "connect", _careful)
        return engine
    return create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        connect_args={"connect_timeout": CONNECT_S, "options": _session_options()},
        pool_size=CONNECTIONS,
        max_overflow=CONNECTIONS,
        pool_pre_ping=True,
        pool_timeout=WAIT_S,
    )


def _session_options() -> str:
    """What Postgres does about a client that is gone, or sleeps in a transaction."""
    options = {
        "idle_in_transaction_session_timeout": f"{SILENT_S}s",
        "tcp_keepalives_idle": SILENT_S // 4,
        "tcp_keepalives_interval": SILENT_S // 4,
        "tcp_keepalives_count": 3,
    }
    return " ".join(f"-c {name}={value}" for name, value in options.items())


def _careful(connection: Any, _: ConnectionPoolEntry) -> None:
    """What is committed outlives a power cut; readers do not wait for writers."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Faults of the database as ours; its text may quote what was written, so it stays behind."""
    try:
        yield
    except (OperationalError, PoolTimeoutError) as error:
        original = getattr(error, "orig", None)
        if SQLITE_FULL in (getattr(original, "sqlite_errorname", ""),) or (
            getattr(original, "sqlstate", None) == POSTGRES_DISK_FULL
        ):
            raise DiskFullError(
                "the disk filled up while this was written",
                remedy="free space on the disk of the database, then send again",
            ) from error
        raise _unreachable() from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise _unreachable() from error
        raise
    except SQLAlchemyError as error:
        if "closed" in str(error).lower():
            raise _unreachable() from error
        raise


def _unreachable() -> BusyError:
    return BusyError(
        "the index cannot be reached",
        remedy="send again later; if it stays so, look at the database and its disk",
    )


_held_here: set[Path] = set()
_holding = threading.Lock()


@contextlib.contextmanager
def _file_lock(path: Path) -> Iterator[bool]:
    import fcntl

    with _holding:
        if path in _held_here:
            mine = False
        else:
            _held_here.add(path)
            mine = True
    if not mine:
        yield False
        return
    try:
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
    finally:
        with _holding:
            _held_here.discard(path)


def as_json(value: Any) -> str:
    """One text for one value: keys sorted, no blanks."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
