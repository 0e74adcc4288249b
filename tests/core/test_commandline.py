"""Which commands a shell line would execute, for the allow and deny lists."""

from __future__ import annotations

import pytest

from mesh.core.commandline import refused_command

ECHO = frozenset({"echo", "cat"})
RM = frozenset({"rm"})


@pytest.mark.parametrize(
    "line",
    [
        "echo hi",
        "/bin/echo hi",
        "echo hi | cat",
        "A=1 echo hi",
        "echo hi; echo ho",
        "echo 'a; rm b'",
        "echo hi\ncat f",
        "echo hi > rm",
        "echo hi 2>&1",
        "cat < rm && echo done",
        "(echo a; cat b)",
    ],
)
def test_line_of_allowed_commands_passes(line: str) -> None:
    """If every command of a line is allowed, then the line is."""
    assert refused_command(line, ECHO, None) is None
    assert refused_command(line, ECHO, RM) is None


@pytest.mark.parametrize(
    "line",
    [
        "rm x",
        "echo hi; rm x",
        "echo hi && rm x",
        "echo hi | rm",
        "echo hi\nrm x",
        "echo `rm x`",
        "echo $(rm x)",
        "cat <(rm x)",
        "A=1 rm x",
        "(rm x)",
        "echo hi & rm x",
        "echo 'open",
        "if true; then rm x; fi",
        "/bin/r\\m x",
        "echo hi;rm x",
        "echo a || rm x",
    ],
)
def test_line_with_another_command_is_refused_by_an_allow_list(line: str) -> None:
    """If any command of a line is not allowed, or cannot be told, then the line is refused."""
    assert refused_command(line, ECHO, None) is not None


@pytest.mark.parametrize(
    "line",
    [
        "rm x",
        "ls; rm x",
        "ls && /bin/rm x",
        "ls\nrm",
        "echo `rm x`",
        "echo $(/bin/rm x)",
        "A=1 rm x",
        "ls 'open; rm x",
    ],
)
def test_denied_command_anywhere_in_the_line_is_refused(line: str) -> None:
    """If a denied command stands anywhere in a line, then the line is refused, whatever stands before it."""
    assert refused_command(line, None, RM) is not None


@pytest.mark.parametrize("line", ["ls rm", "echo 'rm x'", "ls; pwd", "echo $(date)"])
def test_deny_list_lets_other_lines_pass(line: str) -> None:
    """If a denied name is only an argument, then the line passes."""
    assert refused_command(line, None, RM) is None


def test_direct_execution_is_judged_by_its_one_command() -> None:
    """If there is no shell, then arguments are not commands."""
    assert refused_command(["/bin/echo"], ECHO, RM) is None
    assert refused_command(["/bin/rm"], None, RM) is not None
    assert refused_command(["ls"], ECHO, None) is not None


def test_without_lists_everything_passes() -> None:
    """If nobody set a list, then nothing is refused."""
    assert refused_command("rm -rf x `y`", None, None) is None
