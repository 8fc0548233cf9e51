"""`python -m trainer serve`: the generalist for another program."""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path

from episode_store.command_line import CommandLine, add_tasks, positive_int, print_json
from episode_store.errors import UserError
from episode_store.loopback import ADDRESS
from trainer.cli_acting import acting_config, add_acting, add_trained, control_tasks, trained_checkpoint

_SHORTEST_TOKEN = 16


def add_serve(command: CommandLine) -> None:
    """Registers the verb."""
    parser = command.verb(
        "serve",
        _serve,
        help="answers observations with actions over HTTP, for a robot or another program",
        example="trainer serve --run runs/demo/train --shards runs/demo/shards --tasks CartPole-v1",
    )
    add_trained(parser)
    add_tasks(parser)
    add_acting(parser)
    parser.add_argument(
        "--address", default=ADDRESS, help=f"to listen on; beyond this machine with a token ({ADDRESS})"
    )
    parser.add_argument("--port", type=_port, default=8471, metavar="N", help="port; 0 for any that is free (8471)")
    parser.add_argument("--token-file", metavar="FILE", help="holds the token that every request must carry")
    parser.add_argument("--max-sessions", type=positive_int, default=16, metavar="N", help="open at a time (16)")
    parser.add_argument(
        "--idle-seconds", type=positive_int, default=300, metavar="N", help="after which a session is closed (300)"
    )
    parser.add_argument(
        "--request-seconds", type=positive_int, default=60, metavar="N", help="that a request may take (60)"
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)


def _serve(arguments: argparse.Namespace) -> int:
    from trainer.serve import PolicyServer, ServeConfig, Service
    from trainer.shards import Dataset

    config = ServeConfig(
        address=arguments.address,
        port=arguments.port,
        max_sessions=arguments.max_sessions,
        idle_seconds=arguments.idle_seconds,
        request_seconds=arguments.request_seconds,
    )
    given = _token(arguments.token_file)
    token = given or (None if config.is_local else secrets.token_urlsafe(24))
    source, acting = trained_checkpoint(arguments), acting_config(arguments)
    dataset = Dataset.open(arguments.shards)
    service = Service(Path(arguments.run), dataset, control_tasks(dataset, arguments.tasks), acting, source)
    with PolicyServer(service, config, token=token) as server:
        made = token if token is not None and given is None else None
        if arguments.json:
            print_json({"url": server.url, "port": server.server_port, "token": made, "tasks": list(service.tasks)})
        else:
            print(f"{server.url}: {len(service.tasks)} tasks. Ctrl-C ends it.")
            if made:
                print(f"Every request must carry the header Authorization: Bearer {made}")
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
    return 0


def _token(file: str | None) -> str | None:
    if file is None:
        return None
    try:
        token = Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--token-file {file}: cannot be read ({error})") from None
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or any(mark.isspace() for mark in token):
        raise UserError(f"--token-file {file}: expected {_SHORTEST_TOKEN} or more characters of ASCII without spaces")
    return token
