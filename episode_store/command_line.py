"""What every command line of this project shares: flags, errors, JSON output, progress bars, exit codes.

Exit codes: 0 success; 1 the command ran and found something wrong (for example `verify`); 2 a mistake in the input,
told in one line; 130 interrupted; 141 whoever read the output has gone, as after `| head`.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import select
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

from episode_store.errors import UserError
from episode_store.splits import DEFAULT_HOLDOUT

# What a shell reports of a program whose reader has gone: 128 + SIGPIPE.
_READER_GONE = 141
# Seeds that every generator takes, also with a number of episodes added.
_MAX_SEED = 2**31 - 1

T = TypeVar("T")
Handler = Callable[[argparse.Namespace], int | None]


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of printing the whole usage."""

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class CommandLine:
    """A program with verbs. Register verbs with `verb`, then call `main`."""

    def __init__(self, prog: str, description: str) -> None:
        self.prog = prog
        self._parser = OneLineParser(
            prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        self._verbs = self._parser.add_subparsers(
            dest="verb", metavar="verb", required=True, parser_class=OneLineParser
        )

    def verb(self, name: str, handler: Handler, *, help: str, example: str) -> argparse.ArgumentParser:
        """Adds a verb; every verb has `--json` and an example in its help."""
        parser = self._verbs.add_parser(
            name,
            help=help,
            description=help,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
        parser.set_defaults(handler=handler)
        return parser

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Runs one verb and returns the exit code."""
        namespace = self._parser.parse_args(arguments)
        return guarded(self.prog, lambda: namespace.handler(namespace))


def guarded(prog: str, work: Callable[[], int | None]) -> int:
    """Runs `work` and returns the exit code; the user's mistakes are told in one line that begins with `prog`."""
    try:
        code = work() or 0
        sys.stdout.flush()  # a reader that has gone is noticed here and not when Python ends
        return code
    except UserError as error:
        return _fail(prog, str(error))
    except FileNotFoundError as error:
        return _fail(prog, f"{error.filename}: no such file or folder")
    except (FileExistsError, NotADirectoryError) as error:
        return _fail(prog, f"{error.filename}: what should be a folder of this path is a file")
    except IsADirectoryError as error:
        return _fail(prog, f"{error.filename}: is a folder, expected a file")
    except PermissionError as error:
        return _fail(prog, f"{error.filename}: permission denied")
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        # What is still buffered goes nowhere, without another error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _READER_GONE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return _fail(
            prog,
            f"no space left on the disk while writing {error.filename or 'a file'}; "
            "free some and run the same command again",
        )
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; run the same command again to go on", file=sys.stderr)
        return 130


def _reader_has_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more; a broken pipe may also be a socket's."""
    try:
        descriptor = sys.stdout.fileno()
    except ValueError:  # not a file at all
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(happened & (select.POLLERR | select.POLLHUP) for _, happened in poll.poll(0))


def _fail(prog: str, message: str) -> int:
    print(f"{prog}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def add_store(parser: argparse.ArgumentParser) -> None:
    """`--store`: the episode store to read or write."""
    parser.add_argument("--store", required=True, metavar="DIR", help="folder of the episode store")


def add_tasks(parser: argparse._ActionsContainer) -> None:
    """`--tasks`: task ids or patterns."""
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="task ids, or patterns such as 'metaworld/*'")


def add_episodes(parser: argparse.ArgumentParser, default: int) -> None:
    """`--episodes`: how many a task."""
    parser.add_argument(
        "--episodes", type=positive_int, default=default, metavar="N", help=f"episodes a task ({default})"
    )


def add_seed(parser: argparse.ArgumentParser, default: int = 0) -> None:
    """`--seed`: of every random choice the command makes."""
    parser.add_argument(
        "--seed", type=seed_number, default=default, metavar="N", help=f"seed of every random choice ({default})"
    )


def add_holdout(parser: argparse.ArgumentParser) -> None:
    """`--holdout`: share of each corpus that is validation data; the same in every command that reads a store."""
    parser.add_argument(
        "--holdout",
        type=share,
        default=DEFAULT_HOLDOUT,
        metavar="SHARE",
        help=f"share of each corpus that is held out, unless it declares its own split ({DEFAULT_HOLDOUT})",
    )


def add_output(parser: argparse.ArgumentParser, what: str, required: bool = True) -> None:
    """`--output`: where the result goes."""
    parser.add_argument("--output", required=required, metavar="PATH", help=what)


def positive_int(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def seed_number(text: str) -> int:
    """An argparse type: an integer that every generator takes as a seed."""
    value = _whole(text)
    if not 0 <= value <= _MAX_SEED:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to {_MAX_SEED}, got {value}")
    return value


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None


def not_negative_float(text: str) -> float:
    """An argparse type: a finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of 0 or more, got {text!r}")
    return value


def share(text: str) -> float:
    """An argparse type: a number in [0, 1)."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}") from None
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1 without 1, got {text}")
    return value


def print_json(result: Any) -> None:
    """One JSON document on standard output."""
    json.dump(result, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def print_table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> None:
    """A plain aligned table on standard output; numbers to the right."""
    cells = [list(header)] + [[f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    numeric = [
        all(isinstance(row[column], int | float) for row in rows) and bool(rows) for column in range(len(header))
    ]
    for row in cells:
        line = "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        print(line.rstrip())


def progress(
    items: Iterable[T] | None = None, *, description: str, total: float | None = None, unit: str = "it"
) -> tqdm:
    """A progress bar with a rate on standard error; on a terminal it moves, in a log it prints now and then."""
    interactive = sys.stderr.isatty()
    return tqdm(
        items,
        desc=description,
        total=total,
        unit=f" {unit}",
        mininterval=0.2 if interactive else 10.0,
        maxinterval=10.0 if interactive else 60.0,
        dynamic_ncols=interactive,
        unit_scale=bool(total and total >= 100_000),
    )
