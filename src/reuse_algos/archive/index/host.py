"""What this host knows of an archive's runs: shards that it has fetched, and runs that it has read by itself.

It is one SQLite file below ``$XDG_CACHE_HOME/reuse_algos/index``, which may be deleted at any time. A file that cannot
be used costs time only: then what is read is kept in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import zlib
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from reuse_algos.archive.format.summary import RunSummary
from reuse_algos.archive.index.shards import Shard, decode_summaries, encode_summary
from reuse_algos.archive.stores.cache import cache_directory, prune_directory

MAX_BYTES = 2 << 30
"""The most that the databases of all archives may take on this host; those used longest ago are deleted."""

_VERSION = 5
_SECONDS = 5.0  # to wait for another process
_MAPPED_BYTES = 256 << 20
_NEAR = 1 << 15
_NEWLINE = ord("\n")
_PART = 2000  # summaries in memory at once
_TABLES = """
CREATE TABLE shards (path TEXT PRIMARY KEY, ids TEXT, replaces TEXT, sha256 TEXT, lines BLOB) WITHOUT ROWID;
CREATE TABLE compared (path TEXT PRIMARY KEY, places BLOB) WITHOUT ROWID;
CREATE TABLE own (run_id TEXT PRIMARY KEY, summary BLOB, crc INTEGER) WITHOUT ROWID;
CREATE TABLE doubted (run_id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE notes (path TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_TABLE_NAMES = ("shards", "compared", "own", "doubted", "notes")


class KnownShard(NamedTuple):
    """A shard that this host has fetched, not decoded.

    Attributes:
        ids: The runs that it knows; none of a shard that is not to be believed.
        text: The summary of each as JSON, one in a line. It is split only where each line is needed.
        replaces: Paths of smaller shards that need not be read any more.
    """

    ids: list[str]
    text: bytes
    replaces: list[str]

    def line(self, at: int) -> bytes:
        """Return one summary as JSON, given the place of its run in ``ids``; nothing if it is not there."""
        head = f'["{self.ids[at]}",'.encode()
        # Lines are about equally long, so it is near its share of the text.
        for start in (max(0, len(self.text) * at // len(self.ids) - _NEAR), 0):
            found = self.text.find(head, start)
            if found == 0 or (found > 0 and self.text[found - 1] == _NEWLINE):
                end = self.text.find(b"\n", found)
                return self.text[found:] if end < 0 else self.text[found:end]
        return b""

    def lines(self, wanted: Container[str] | None = None) -> list[bytes]:
        """Return the summaries of some runs as JSON. Default: of all."""
        lines = self.text.split(b"\n") if self.ids else []
        if wanted is None:
            return lines
        return [line for run_id, line in zip(self.ids, lines, strict=True) if run_id in wanted]

    def runs(self) -> list[RunSummary]:
        """Decode all summaries."""
        return decode_summaries(self.lines())


class HostIndex:
    """One archive's part of what this host knows.

    Args:
        database: An open connection whose tables are there.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def shard(self, path: str) -> KnownShard | None:
        """Return a shard that was fetched; None if it was not.

        Raises:
            sqlite3.DatabaseError: It is not what was kept.
        """
        query = "SELECT ids, replaces, sha256, lines FROM shards WHERE path = ?"
        row = self._database.execute(query, (path,)).fetchone()
        if row is None:
            return None
        ids, replaces, sha256, lines = row
        if not isinstance(lines, bytes) or sha256 != _hash_of(ids, lines, replaces):
            raise sqlite3.DatabaseError(f"the row of {path} is damaged")
        return KnownShard(ids.split("\n"), lines, replaces.split("\n")) if ids else KnownShard([], b"", [])

    def names(self, path: str) -> tuple[list[str], list[str]]:
        """Return the runs that a shard knows, and the shards that it replaces, without reading its summaries.

        Both are empty of a shard that was not fetched or is not to be believed.
        """
        row = self._database.execute("SELECT ids, replaces FROM shards WHERE path = ?", (path,)).fetchone()
        ids, replaces = row or ("", "")
        return (ids.split("\n"), replaces.split("\n") if replaces else []) if ids else ([], [])

    def shards(self) -> set[str]:
        """Return the paths of the shards that were fetched."""
        return {path for (path,) in self._database.execute("SELECT path FROM shards")}

    def compared(self, path: str) -> bytearray:
        """Return which runs of a shard were compared with their own records: for each of its ``ids`` 1 or 0.

        Raises:
            sqlite3.DatabaseError: It is not what was kept.
        """
        row = self._database.execute("SELECT places FROM compared WHERE path = ?", (path,)).fetchone()
        if row is None:
            return bytearray(len(self.names(path)[0]))
        if not isinstance(row[0], bytes) or row[0].translate(None, b"\0\1"):
            raise sqlite3.DatabaseError(f"what was compared of {path} is damaged")
        return bytearray(row[0])

    def keep_compared(self, path: str, places: bytearray) -> None:
        """Remember which runs of a shard were compared, as :meth:`compared` says it."""
        with self._database:
            self._database.execute("INSERT OR REPLACE INTO compared VALUES (?, ?)", (path, bytes(places)))

    def keep_shard(self, path: str, shard: Shard | None) -> None:
        """Remember a shard; None for one that is not to be believed."""
        runs, replaces = (shard.runs, "\n".join(shard.replaces)) if shard is not None else ([], "")
        ids, lines = "\n".join(run.run_id for run in runs), b"\n".join(map(encode_summary, runs))
        with self._database:
            row = (path, ids, replaces, _hash_of(ids, lines, replaces), lines)
            self._database.execute("INSERT OR REPLACE INTO shards VALUES (?, ?, ?, ?, ?)", row)
            self._database.execute("DELETE FROM compared WHERE path = ?", (path,))

    def forget_shards(self, paths: Iterable[str]) -> None:
        """Forget shards, for example those that another one replaces."""
        with self._database:
            rows = [(path,) for path in paths]
            self._database.executemany("DELETE FROM shards WHERE path = ?", rows)
            self._database.executemany("DELETE FROM compared WHERE path = ?", rows)

    def own(self) -> Iterator[tuple[list[str], list[bytes]]]:
        """Give the ended runs that this host has read by itself, some at a time: their ids and their summaries."""
        last = ""
        while True:
            # From id to id and not by one open query, since the caller keeps runs meanwhile.
            rows = self._database.execute(
                "SELECT run_id, summary, crc FROM own WHERE run_id > ? ORDER BY run_id LIMIT ?", (last, _PART)
            ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            # A line is looked through before it is decoded, so noise in it must not pass for a run that does not fit.
            if any(not isinstance(line, bytes) or zlib.crc32(line) != crc for _, line, crc in rows):
                raise sqlite3.DatabaseError("a row of a run is damaged")
            yield [row[0] for row in rows], [row[1] for row in rows]

    def keep(self, summaries: Iterable[RunSummary]) -> None:
        """Remember runs that this host has read by itself."""
        with self._database:
            rows = [(run.run_id, line := encode_summary(run), zlib.crc32(line)) for run in summaries]
            self._database.executemany("INSERT OR REPLACE INTO own VALUES (?, ?, ?)", rows)

    def forget(self, run_ids: Iterable[str]) -> None:
        """Forget runs that this host has read by itself."""
        with self._database:
            self._database.executemany("DELETE FROM own WHERE run_id = ?", [(run_id,) for run_id in run_ids])

    def doubted(self) -> set[str]:
        """Return the runs of which no shard is believed."""
        return {run_id for (run_id,) in self._database.execute("SELECT run_id FROM doubted")}

    def doubt(self, run_ids: Iterable[str]) -> None:
        """Believe no shard of these runs any more, and forget what is known of them."""
        rows = [(run_id,) for run_id in run_ids]
        with self._database:
            self._database.executemany("INSERT OR IGNORE INTO doubted VALUES (?)", rows)
            self._database.executemany("DELETE FROM own WHERE run_id = ?", rows)

    def notes(self) -> set[str]:
        """Return the notes of changed runs that were heeded."""
        return {path for (path,) in self._database.execute("SELECT path FROM notes")}

    def keep_notes(self, paths: Iterable[str]) -> None:
        """Remember that notes were heeded."""
        with self._database:
            self._database.executemany("INSERT OR IGNORE INTO notes VALUES (?)", [(path,) for path in paths])

    def clear(self) -> None:
        """Forget everything of this archive."""
        with self._database:
            for table in _TABLE_NAMES:
                self._database.execute(f"DELETE FROM {table}")


def _hash_of(ids: str, lines: bytes, replaces: str) -> str:
    digest = hashlib.sha256(lines)
    digest.update(f"\n{ids}\n\n{replaces}".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def open_host(location: str, archive_id: str, *, in_memory: bool = False) -> Iterator[HostIndex]:
    """Open what this host knows of an archive.

    Args:
        location: Where the archive is: two copies of one archive may hold different runs.
        archive_id: Its identity.
        in_memory: Delete the file, which turned out to be damaged, and start from nothing. Default: False.
    """
    path = _file_of(location, archive_id)
    if in_memory and path is not None:
        with contextlib.suppress(OSError):
            os.unlink(path)
        path = None
    database = _connect(path)
    try:
        yield HostIndex(database)
    finally:
        database.close()


def _file_of(location: str, archive_id: str) -> Path | None:
    folder = cache_directory("index")
    name = hashlib.sha256(f"{archive_id}\n{location}".encode(errors="surrogatepass")).hexdigest()[:32]
    return None if folder is None else folder / f"{name}.sqlite"


def _connect(path: Path | None) -> sqlite3.Connection:
    # A file that cannot be opened is deleted, and made again by the second try.
    for _ in range(2 if path else 0):
        try:
            return _open(path)  # type: ignore[arg-type]  # there is a path
        except sqlite3.OperationalError:  # another process holds it, or the disk is full
            break
        except (OSError, sqlite3.Error):  # it is damaged, or of another version
            with contextlib.suppress(OSError):
                os.unlink(path)  # type: ignore[arg-type]
    database = sqlite3.connect(":memory:", isolation_level="IMMEDIATE")
    database.executescript(_TABLES)
    return database


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    if is_new:
        prune_directory(path.parent, MAX_BYTES)
    database = sqlite3.connect(path, timeout=_SECONDS, isolation_level="IMMEDIATE")
    try:
        database.execute("PRAGMA synchronous = OFF")  # a lost cache is only read again
        # Large shards are then read from the page cache at once, not page by page through SQLite's own.
        database.execute(f"PRAGMA mmap_size = {_MAPPED_BYTES}")
        with database:
            database.execute("BEGIN IMMEDIATE")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in filter(str.strip, _TABLES.split(";")):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise sqlite3.DatabaseError(f"{path} has version {version}")
        # Damage of a table shows here, while the file can still be made again.
        for table in _TABLE_NAMES:
            database.execute(f"SELECT count(*) FROM (SELECT 1 FROM {table} LIMIT 1)").fetchone()
        os.utime(path)
    except BaseException:
        database.close()
        raise
    return database
