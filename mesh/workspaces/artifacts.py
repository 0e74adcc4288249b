"""Artifacts: bytes under a key, kept outside of the log. Another store is a class with these methods."""

from __future__ import annotations

import os
import re
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from mesh.errors import NotFound
from mesh.workspaces.files import storage


class ArtifactStore(Protocol):
    """Where artifacts are kept. Trouble is ``storage_error``."""

    def put(self, key: str, data: bytes) -> None:
        """Keep the bytes; what was under the key is replaced."""

    def get(self, key: str) -> bytes:
        """The bytes. Raises ``NotFound`` (``not_found``)."""

    def delete(self, key: str) -> None:
        """Forget them; a key that is not there is as well."""


class FileStore:
    """One file per key in a folder, replaced whole."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = Path(root)
        with storage("cannot make the artifact store"):
            self._root.mkdir(parents=True, exist_ok=True)

    def put(self, key: str, data: bytes) -> None:
        """Keep the bytes; what was under the key is replaced."""
        path = self.path(key)
        beside = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
        with storage("cannot keep the artifact"):
            try:
                beside.write_bytes(data)
                beside.replace(path)
            finally:
                beside.unlink(missing_ok=True)

    def get(self, key: str) -> bytes:
        """The bytes.

        Raises:
            NotFound: ``not_found``.
        """
        with storage("cannot read the artifact"):
            try:
                return self.path(key).read_bytes()
            except FileNotFoundError as exc:
                raise NotFound(f"no artifact {key[:80]!r}", code="not_found") from exc

    def delete(self, key: str) -> None:
        """Forget them; a key that is not there is as well."""
        with storage("cannot delete the artifact"):
            self.path(key).unlink(missing_ok=True)

    def path(self, key: str) -> Path:
        """The file of a key: what can be read of it, and a digest that tells it from all others."""
        digest = sha256(key.encode(errors="surrogateescape")).hexdigest()[:16]
        return self._root / f"{re.sub(r'[^A-Za-z0-9_-]', '_', key[:32])}_{digest}"


__all__ = ["ArtifactStore", "FileStore"]
