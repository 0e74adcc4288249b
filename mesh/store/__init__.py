"""Durable state: one SQLite file per partition, one writer each."""
