"""The tables of a batch: itself, in one row, its rows, and the uploads that these name."""

SCHEMA = """
CREATE TABLE batch (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, digest TEXT NOT NULL, file TEXT, source BLOB,
    webhook_url TEXT, is_told INTEGER NOT NULL DEFAULT 0,
    status TEXT NOT NULL, error TEXT, waiting TEXT, is_cancelled INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL, started_at REAL, ended_at REAL,
    num_rows INTEGER NOT NULL DEFAULT 0, num_queued INTEGER NOT NULL DEFAULT 0,
    num_running INTEGER NOT NULL DEFAULT 0, num_succeeded INTEGER NOT NULL DEFAULT 0,
    num_failed INTEGER NOT NULL DEFAULT 0, num_cancelled INTEGER NOT NULL DEFAULT 0,
    num_bytes INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE rows (
    number INTEGER PRIMARY KEY, id TEXT UNIQUE, request BLOB,
    status TEXT NOT NULL, answer TEXT, sequence INTEGER, ended_at REAL
);
CREATE INDEX rows_to_do ON rows (status, number) WHERE sequence IS NULL;
CREATE UNIQUE INDEX rows_by_end ON rows (sequence) WHERE sequence IS NOT NULL;
CREATE TABLE files (id TEXT PRIMARY KEY);
"""
