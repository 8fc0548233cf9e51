"""The verb `view`."""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser
from collections.abc import Iterable
from pathlib import Path

from episode_store import cli_versions, command_line, extensions, files
from episode_store.cli_choice import add_choice, choose_episodes
from episode_store.command_line import CommandLine
from episode_store.errors import UserError
from episode_store.viewer import page, snapshot
from episode_store.viewer.content import Content
from episode_store.viewer.server import ViewerServer

_EPISODES = 3
_MAX_MB = 20
_REMEDY = "pip install 'generalist-agent[tokenize]'"


def add_verbs(program: CommandLine) -> None:
    """Adds `view`."""
    parser = program.verb(
        "view",
        _view,
        help="look at episodes in a browser, on this machine only, until Ctrl-C; or write some into one HTML file",
        example="python -m episode_store view --store runs/demo/store --text-model runs/demo/text.model",
    )
    command_line.add_store(parser)
    cli_versions.add_version(parser)
    parser.add_argument("--text-model", metavar="FILE", help="the text model; shows the tokens of tasks with text too")
    parser.add_argument("--port", type=_port, default=0, metavar="N", help="port of the page (any that is free)")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    command_line.add_output(parser, "HTML file to write some episodes to, instead of serving all", required=False)
    of_file = parser.add_argument_group("with --output")
    add_choice(of_file, default=_EPISODES)
    of_file.add_argument(
        "--max-mb",
        type=command_line.positive_int,
        default=_MAX_MB,
        metavar="N",
        help=f"leave episodes out, and name them, rather than write a larger file ({_MAX_MB})",
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)


def _view(namespace: argparse.Namespace) -> int:
    content = _content(namespace)
    if namespace.output is not None:
        return _write(namespace, content)
    for name in ("tasks", "where", "episode"):
        if getattr(namespace, name) is not None:
            raise UserError(f"--{name} chooses what --output writes; the page itself has filters")
    return _serve(namespace, content)


def _content(namespace: argparse.Namespace) -> Content:
    token_view, no_tokens = None, ""
    try:
        token_view = extensions.load("token_view", remedy=_REMEDY)(namespace.text_model)
    except extensions.ExtensionMissingError as error:
        if namespace.text_model is not None:
            raise
        no_tokens = f"Tokens are not shown: {error}"
    return Content(namespace.store, version=namespace.version, token_view=token_view, no_tokens=no_tokens)


def _serve(namespace: argparse.Namespace, content: Content) -> int:
    with ViewerServer(content, port=namespace.port) as server:
        if namespace.json:
            command_line.print_json({"url": server.url, "port": server.server_port, "store": namespace.store})
        else:
            print(f"{server.url}\nOnly this machine's browsers with this address are answered. Ctrl-C ends it.")
        sys.stdout.flush()
        if not namespace.no_browser and _has_screen():
            webbrowser.open(server.url_once)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
    return 0


def _has_screen() -> bool:
    """Whether a browser would open in a window, and not in this terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _write(namespace: argparse.Namespace, content: Content) -> int:
    path = Path(namespace.output)
    if path.is_dir():
        raise UserError(f"--output {path}: is a folder, expected the name of a file such as page.html")
    episode_ids = choose_episodes(content.store, namespace)
    watched: Iterable[str] = episode_ids
    if not namespace.json:
        watched = command_line.progress(episode_ids, description="view", unit="episodes")
    data = snapshot.gather(content, watched, max_bytes=namespace.max_mb * 1_000_000)
    html = page.build(data).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, html)
    if namespace.json:
        command_line.print_json(
            {
                "output": str(path),
                "bytes": len(html),
                "episodes": list(data["episodes"]),
                "left_out": [episode_id for episode_id in episode_ids if episode_id not in data["episodes"]],
            }
        )
        return 0
    sys.stderr.flush()
    for sentence in data["left_out"]:
        print(sentence)
    print(f"{path}: {len(data['rows'])} episodes, {len(html) / 1e6:.1f} MB")
    return 0
