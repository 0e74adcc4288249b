"""What people see of runs: on a terminal of 80 columns, in a pipe, in files beside it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

import mesh

pytestmark = pytest.mark.e2e
HERE = Path(__file__).parent
PATIENCE_S = 30.0
LONG = "pytest -q a/b a/b a/b a/b a/b a/b a/b a/b a/b a/b a/b a/b a/..."
AGENTS = {"coder": {"provider": "python", "target": f"{HERE}/rendering_agents.py:coder"}}


@pytest.fixture(scope="module")
def node() -> Iterator[mesh.LocalNode]:
    """A node with the agent."""
    with mesh.LocalNode(partitions=1, config={"agents": AGENTS}) as started:
        yield started


def run_mesh(node: mesh.LocalNode, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """One command, in a pipe."""
    return subprocess.run(
        [sys.executable, "-m", "mesh", *arguments, "--address", node.address],
        capture_output=True, timeout=PATIENCE_S, check=False,
    )


def on_a_terminal(node: mesh.LocalNode, *arguments: str, **environ: str) -> str:
    """What a terminal of 80 columns gets."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "TERM")}
    process = subprocess.Popen(
        [sys.executable, "-m", "mesh", *arguments, "--address", node.address],
        stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL, env={**clean, "TERM": "xterm", **environ},
    )
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 65536):
            seen += chunk
    except OSError:
        pass  # the other end is closed: that is how a terminal says so
    finally:
        os.close(ours)
        process.wait(PATIENCE_S)
    return seen.decode().replace("\r\n", "\n")


def test_a_pipe_gets_the_agents_words_byte_for_byte(node: mesh.LocalNode) -> None:
    """If the output is a pipe, then it is what the agent said, control and all, and nothing of ours."""
    done = run_mesh(node, "run", "coder", "x")
    assert done.stdout.decode() == "Looking at \x1b[31mit\x1b[0m.\x1b]0;pwned\x07\nNow fixing.漢字\n"


def test_a_terminal_gets_words_without_control(node: mesh.LocalNode) -> None:
    """If the output is a terminal, then no escape sequence of the agent reaches it."""
    assert on_a_terminal(node, "run", "coder", "x", "--no-usage") == "Looking at it.\nNow fixing.漢字\n"


def test_studio_on_a_terminal_shows_what_goes_on(node: mesh.LocalNode) -> None:
    """If studio is wanted, then a tool's line fits into 80 columns until its summary takes its place."""
    seen = on_a_terminal(node, "run", "coder", "fix it", "--no-usage", "--render", "studio", NO_COLOR="1")
    assert seen == (
        "  › fix it\n  ● coder run started\n\n  Looking at it.\n  Now fixing.\n"
        f"  ◐ Running: {LONG}\r\x1b[2K"
        "\n"
        f"  ✓ Ran: {LONG} (exit 0, 8 chars)\n"
        "\n  漢字\n\n  ● Run complete (end_turn) — 8/3 tokens, 1 tool\n"
    )


def test_an_error_is_said_once_on_a_terminal_and_on_stderr_in_pipes(node: mesh.LocalNode) -> None:
    """If the renderer tells why the run failed, then the error is not said again below it; of two pipes each
    has it, and who renders the words alone has it from stderr."""
    words = ("run", "shell", "exit 3", "--no-usage")
    seen = on_a_terminal(node, *words, "--render", "studio", NO_COLOR="1")
    message = "the command ended with exit code 3"
    assert seen.count(message) == 1, seen
    assert on_a_terminal(node, *words).count(f"error: {message} (command_failed)") == 1
    piped = run_mesh(node, *words, "--render", "verbose")
    assert message.encode() in piped.stdout and f"error: {message}".encode() in piped.stderr


def test_colours_are_for_terminals_that_want_them(node: mesh.LocalNode) -> None:
    """If it is a terminal and NO_COLOR is not set, then there are colours; a dumb one has none."""
    words = ("run", "coder", "x", "--no-usage", "--render", "compact")
    assert "\x1b[34mr+\x1b[0m" in on_a_terminal(node, *words)
    assert "\x1b" not in on_a_terminal(node, *words, TERM="dumb")


def test_sinks_get_the_run_beside_the_terminal(node: mesh.LocalNode, tmp_path: Path) -> None:
    """If there are sinks, then each has the whole run; one that breaks is reported and changes nothing."""
    text, lines = tmp_path / "text", tmp_path / "lines"
    done = run_mesh(
        node, "run", "coder", "x", "--render", "verbose",
        "--sink", f"file:{text}", "--sink", f"jsonl:{lines}", "--sink", "file:/dev/full",
    )
    assert done.returncode == 0 and done.stdout.decode() == text.read_text()
    *_, end, summary = text.read_text().splitlines()
    assert end.startswith("[run_completed] stop_reason=end_turn seq=") and summary.endswith(" 1 tools ---")
    assert [json.loads(line)["type"] for line in lines.read_text().splitlines()][-1] == "run_completed"
    assert done.stderr.decode().startswith("warning: FileSink(/dev/full) gets no more: ")
    done = run_mesh(node, "run", "coder", "x", "-o", "json", "--sink", "file:/dev/full")
    assert [list(json.loads(line)) for line in done.stderr.splitlines()] == [["warning"]]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--sink", "nowhere"), 2),
        (("--sink", "file:/no/such/folder/x"), 2),
        (("--tool-output", "full"), 2),
        (("--render", "fancy"), 2),
    ],
)
def test_a_view_that_cannot_be_begins_no_run(node: mesh.LocalNode, words: tuple[str, ...], code: int) -> None:
    """If a sink or an option is wrong, then it is said in a line, and no session was made."""
    with node.client() as client:
        before = len(client.sessions.list())
        done = run_mesh(node, "run", "coder", "x", *words)
        assert done.returncode == code and b"Traceback" not in done.stderr and not done.stdout
        if b"/no/such/folder" in done.stderr:
            assert b"there is no folder /no/such/folder (validation_error)" in done.stderr
        assert len(client.sessions.list()) == before


def test_attach_shows_a_session_as_it_is_asked_to(node: mesh.LocalNode) -> None:
    """If a finished session is attached to from its beginning, then it is shown whole."""
    with node.client() as client:
        sid = client.run_once("coder", "fix it").session_id
    seen = on_a_terminal(node, "session", "attach", sid, "--after", "0", NO_COLOR="1")
    assert seen.startswith("  › fix it\n  ● coder run started\n") and seen.endswith("  ● session completed\n")
    piped = run_mesh(node, "session", "attach", sid, "--after", "0").stdout.decode()
    assert piped.startswith("[session_created] ") and "Looking at it.\nNow fixing.\n" in piped
    lines = run_mesh(node, "session", "attach", sid, "--after", "0", "-o", "json").stdout.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, len(lines) + 1))


def test_a_reader_that_leaves_ends_the_run_without_a_word(node: mesh.LocalNode) -> None:
    """If nobody reads the output any more, then the run is cancelled and the command ends with 1, quietly."""
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [sys.executable, "-m", "mesh", "run", "coder", "x", "--address", node.address],
        stdout=theirs, stderr=subprocess.PIPE, timeout=PATIENCE_S, check=False,
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_full_disk_behind_the_output_is_one_line(node: mesh.LocalNode) -> None:
    """If the output cannot be written, then one line says why."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mesh", "run", "coder", "x", "--address", node.address],
            stdout=full, stderr=subprocess.PIPE, timeout=PATIENCE_S, check=False,
        )
    assert done.returncode == 1 and done.stderr.decode().startswith("error: No space left on device")
    assert b"Traceback" not in done.stderr
