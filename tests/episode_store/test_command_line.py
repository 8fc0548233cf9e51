"""What every command line of the project shares."""

from __future__ import annotations

import argparse
import errno
import subprocess
import sys
from pathlib import Path

import pytest

from episode_store import command_line
from episode_store.command_line import CommandLine
from episode_store.errors import UserError


def _program(error: BaseException | None, result: int | None = None) -> CommandLine:
    def handler(namespace: argparse.Namespace) -> int | None:
        if error is not None:
            raise error
        return result

    program = CommandLine("prog", "a program")
    program.verb("go", handler, help="goes", example="prog go")
    return program


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("one\nline"), 2, "prog: error: one line\n"),
        (FileNotFoundError(errno.ENOENT, "x", "gone.txt"), 2, "prog: error: gone.txt: no such file or folder\n"),
        (PermissionError(errno.EACCES, "x", "a.txt"), 2, "prog: error: a.txt: permission denied\n"),
        (
            NotADirectoryError(errno.ENOTDIR, "x", "f/x"),
            2,
            "prog: error: f/x: what should be a folder of this path is a file\n",
        ),
        (IsADirectoryError(errno.EISDIR, "x", "f"), 2, "prog: error: f: is a folder, expected a file\n"),
        (
            OSError(errno.ENOSPC, "x", "a.txt"),
            2,
            "prog: error: no space left on the disk while writing a.txt; free some and run the same command again\n",
        ),
        (KeyboardInterrupt(), 130, "prog: interrupted; run the same command again to go on\n"),
    ],
)
def test_errors_are_one_line(error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And have their exit codes."""
    assert _program(error).main(["go"]) == code
    assert capsys.readouterr().err == text


def test_a_programming_error_keeps_its_traceback() -> None:
    """Only mistakes of the user are told in one line."""
    with pytest.raises(OSError, match="loop"):
        _program(OSError(errno.ELOOP, "loop")).main(["go"])
    with pytest.raises(ZeroDivisionError):
        _program(ZeroDivisionError()).main(["go"])


def test_exit_codes_of_handlers() -> None:
    """None is success."""
    assert _program(None).main(["go"]) == 0
    assert _program(None, 1).main(["go"]) == 1


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_has_gone_is_no_error(lines: int) -> None:
    """What fits in the buffers fails when it is flushed, the rest while it is printed."""
    program = (
        "import sys; from episode_store.command_line import guarded; sys.stdin.read(); "
        f"sys.exit(guarded('prog', lambda: print('word\\n' * {lines})))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_a_broken_pipe_of_something_else_is_not_hidden() -> None:
    """Such as a socket's."""
    with pytest.raises(BrokenPipeError):
        _program(BrokenPipeError(errno.EPIPE, "socket")).main(["go"])


def test_tables_align_numbers_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    """And texts to the left."""
    command_line.print_table([("a", 1), ("bcd", 20)], ("name", "n"))
    assert capsys.readouterr().out == "name   n\na      1\nbcd   20\n"


def test_positive_int() -> None:
    """An argparse type."""
    assert command_line.positive_int("3") == 3
    for text in ("0", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected"):
            command_line.positive_int(text)


def test_seed_number() -> None:
    """An argparse type: what NumPy's and PyTorch's generators take."""
    assert command_line.seed_number("0") == 0
    for text in ("-1", "2147483648", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected"):
            command_line.seed_number(text)
