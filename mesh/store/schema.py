"""The tables of one partition's file. A newer schema than ours is refused; an older one is migrated.

1: the first. 2: each page of the file has a checksum; ``store/file.py`` rewrites an older file once. 3: what
searches need stands in columns of ``session`` and ``run``, and there is ``audit``; ``store/migrate.py`` adds
them to an older file. 4: ``run.id`` is the run's key (``slots.run_key``). 5: a row of ``lifecycle`` may hold
many messages. 6: the table ``log`` instead of an index of ``event`` by session (``store/by_session.py``).
7: routes are logged before they enter their table (``store/route_log.py``).
"""

from __future__ import annotations

SCHEMA_VERSION = 7

#: WITHOUT ROWID where the key is the row; ``event.pos`` is the rowid, so appending is O(1) at the end of the
#: tree. Small columns beside the encoded record are only those that a query needs; they stand before it:
#: what is behind a long record is reached through all its pages. ``deleted`` is NULL, the time of the
#: deletion, or ERASED or IMPORTING (``core/session.py``). A row of ``lifecycle`` without a topic holds all
#: messages of a commit (``core/announced.py``) under the last one's number.
META = "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;"
TABLES = f"""
{META}
CREATE TABLE IF NOT EXISTS boot (
    id INTEGER PRIMARY KEY, boot_id TEXT UNIQUE NOT NULL, offset_ms INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS route (
    key TEXT PRIMARY KEY, slot INTEGER NOT NULL, boot INTEGER NOT NULL, record BLOB NOT NULL,
    sum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS route_log (
    n INTEGER PRIMARY KEY, boot INTEGER NOT NULL, sum INTEGER NOT NULL, head BLOB NOT NULL,
    records BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS session (
    n INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, slot INTEGER NOT NULL, status INTEGER NOT NULL,
    agent_id TEXT NOT NULL, live INTEGER NOT NULL, created REAL, updated REAL, deleted REAL,
    record BLOB NOT NULL, sum INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS session_live ON session(n) WHERE live = 1;
CREATE INDEX IF NOT EXISTS session_status ON session(status, n);
CREATE INDEX IF NOT EXISTS session_agent ON session(agent_id, n);
CREATE INDEX IF NOT EXISTS session_updated ON session(updated, n);
CREATE INDEX IF NOT EXISTS session_created ON session(created, n);
CREATE INDEX IF NOT EXISTS session_deleted ON session(deleted, n) WHERE deleted IS NOT NULL;
CREATE TABLE IF NOT EXISTS run (
    n INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, session INTEGER NOT NULL, status INTEGER NOT NULL,
    started REAL, provider TEXT, model TEXT, tokens INTEGER, cost REAL, usage BLOB,
    record BLOB NOT NULL, sum INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS run_started ON run(started, n);
CREATE INDEX IF NOT EXISTS run_session ON run(session, n);
CREATE INDEX IF NOT EXISTS run_active ON run(n) WHERE status BETWEEN 1 AND 3;
CREATE TABLE IF NOT EXISTS progress (
    run INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, batch INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS event (
    pos INTEGER PRIMARY KEY, session INTEGER NOT NULL, seq INTEGER NOT NULL, type INTEGER NOT NULL,
    run INTEGER NOT NULL, ts REAL NOT NULL, fragment BLOB NOT NULL, sum INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS main.log (
    session INTEGER NOT NULL, seq INTEGER NOT NULL, pos INTEGER NOT NULL,
    PRIMARY KEY (session, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lifecycle (lseq INTEGER PRIMARY KEY, topic TEXT NOT NULL, payload BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS receipt (
    client BLOB NOT NULL, number INTEGER NOT NULL, seen INTEGER NOT NULL, below INTEGER NOT NULL,
    parts BLOB NOT NULL,
    PRIMARY KEY (client, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (
    tag TEXT NOT NULL, slot INTEGER NOT NULL, record BLOB NOT NULL, PRIMARY KEY (tag, slot));
CREATE TABLE IF NOT EXISTS audit (
    id INTEGER PRIMARY KEY, ts REAL NOT NULL, client BLOB, op TEXT NOT NULL, target TEXT NOT NULL,
    outcome TEXT NOT NULL);
"""

#: In the record of a row of ``spent``, beside its sums: when something was added last.
SPENT_AT = "at"

#: Columns that schema 3 added: table -> (name, type).
ADDED: dict[str, tuple[tuple[str, str], ...]] = {
    "session": (("created", "REAL"), ("updated", "REAL"), ("deleted", "REAL")),
    "run": (
        ("started", "REAL"), ("provider", "TEXT"), ("model", "TEXT"), ("tokens", "INTEGER"), ("cost", "REAL"),
        ("usage", "BLOB"),
    ),
}

__all__ = ["ADDED", "META", "SCHEMA_VERSION", "SPENT_AT", "TABLES"]
