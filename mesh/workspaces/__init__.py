"""Workspaces: the folder that a run works in, its state before and after, and the way back.

For agents and scripts: ``run`` and ``run_streaming`` execute commands, ``FileStore`` keeps artifacts,
``open_workspace`` takes snapshots of a folder by hand.
"""

from mesh.core.workspace import Diff, Snapshot
from mesh.workspaces.artifacts import ArtifactStore, FileStore
from mesh.workspaces.by_hand import Workspace, open_workspace
from mesh.workspaces.exec import Chunk, Executed, run, run_streaming

__all__ = [
    "ArtifactStore", "Chunk", "Diff", "Executed", "FileStore", "Snapshot", "Workspace", "open_workspace",
    "run", "run_streaming",
]
