"""``python -m mesh``: the command line."""

from __future__ import annotations

from mesh.cli import main

if __name__ == "__main__":
    main()
