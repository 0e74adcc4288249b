"""What ``ps`` shows of a forked child: its own name instead of its supervisor's command line."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

#: In /proc/PID/stat behind the name: where the arguments begin and end in memory (proc(5), fields 48 and 49).
_BEGIN, _END = 45, 46


def set_title(text: str) -> None:
    """Write over the arguments of this process, as far as there is room; where there is no /proc, nothing."""
    with suppress(OSError, ValueError, IndexError):
        stat = Path("/proc/self/stat").read_bytes()
        fields = stat[stat.rindex(b")") + 2:].split()
        begin, end = int(fields[_BEGIN]), int(fields[_END])
        room = end - begin - 1  # the last byte stays 0, or the kernel would read on behind it
        if begin > 0 and room > 0:
            ctypes.memmove(begin, _cut(text, room).ljust(room, b"\0"), room)


def _cut(text: str, most: int) -> bytes:
    """A name may be anything: one line of it, in whole characters."""
    line = "".join(c if c.isprintable() else "?" for c in text)
    return line.encode(errors="replace")[:most].decode(errors="ignore").encode()


__all__ = ["set_title"]
