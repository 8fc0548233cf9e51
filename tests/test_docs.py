"""The pages hold what they promise: code runs, commands parse, links and files exist."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from episode_store.command_line import CommandLine

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PACKAGES = ("episode_store", "tokenization", "collectors", "beam_jobs", "trainer")
# Console scripts and tools that a page may show beside the packages' verbs.
TOOLS = {"ruff", "mypy", "lint-imports", "pytest"}
FOLDERS = (*PACKAGES, "benchmarks", "docs", "examples", "requirements", "tests")

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FILE = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[a-z0-9_./]*)`")


def blocks(page: Path, language: str) -> list[str]:
    return [body for kind, body in _BLOCK.findall(page.read_text()) if kind == language]


def commands() -> list[tuple[str, str]]:
    """(page, command without its prompt) of every line that begins with "$ " in a console block."""
    found = []
    for page in PAGES:
        for block in blocks(page, "console"):
            found += [(page.name, line[2:]) for line in block.splitlines() if line.startswith("$ ")]
    return found


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)  # noqa: S102


def test_pages_use_known_kinds_of_blocks() -> None:
    kinds = {kind for page in PAGES for kind, _ in _BLOCK.findall(page.read_text())}
    assert kinds == {"python", "console", "text"}


class Parsed(Exception):  # noqa: N818
    """Carries what a command line understood."""

    def __init__(self, namespace: argparse.Namespace) -> None:
        super().__init__()
        self.namespace = namespace


def parse(package: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What the package's real command line understands, without running it."""

    def stop(line: CommandLine, arguments: list[str]) -> int:
        raise Parsed(line._parser.parse_args(arguments))

    monkeypatch.setattr(CommandLine, "main", stop)
    with pytest.raises(Parsed) as parsed:
        importlib.import_module(f"{package}.cli").main(words)
    return parsed.value.namespace


def check_verb(package: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = parse(package, words, monkeypatch)
    if flags := getattr(namespace, "beam_flags", []):
        from apache_beam.options.pipeline_options import PipelineOptions

        names = {flag.removeprefix("--").partition("=")[0] for flag in flags}
        assert names <= set(PipelineOptions().get_all_options())
    if package == "collectors" and namespace.tasks:
        from collectors import registry

        for word in namespace.tasks:
            assert registry.find([word.partition("=")[0]])
    if package == "trainer" and namespace.verb == "train":
        from trainer import config, presets

        config.override(presets.get(namespace.preset), dict(word.split("=", 1) for word in namespace.set))


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_parse(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)
    first = words[0].removeprefix(".venv/bin/")
    if first == "make":
        assert words[1] in make_targets()
    elif first == "python" and words[1] == "-m" and words[2] in PACKAGES:
        check_verb(words[2], words[3:], monkeypatch)
    elif first.replace("-", "_") in PACKAGES:
        check_verb(first.replace("-", "_"), words[1:], monkeypatch)
    elif first == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = re.search(r"\[(.*)\]", words[-1])
        assert set(named[1].split(",") if named else []) <= set(extras)
    elif first == "python":
        assert words[2] in TOOLS
        assert all((ROOT / word).exists() for word in words[3:] if not word.startswith("-"))
    else:
        assert first in TOOLS


def test_make_targets_named_in_text_exist() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= make_targets()


def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:  # dataclasses look their module up
        patch.setitem(importlib.sys.modules, "demo", module)  # type: ignore[attr-defined]
        spec.loader.exec_module(module)
    return module


def test_stages_of_the_demo_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    module = demo()
    films = list(module.FILMED)
    facts = {
        "tasks": module.TASKS,
        "corpora": module.CORPORA,
        "length": ["--minutes", "1"],
        "episodes": 2,
        "workers": 2,
        "seed": 0,
    }
    stages = module.stages(Path("runs/demo"), **facts, films=films)
    assert set(films) <= set(module.TASKS)
    for stage in stages:
        check_verb(stage.command[0], stage.command[1:], monkeypatch)
    text = (ROOT / "README.md").read_text()
    assert re.findall(r"^\d\. \*\*(.*)\.\*\*", text, re.MULTILINE) == [stage.name for stage in stages]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    for target in _LINK.findall(page.read_text()):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, heading = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name}: {target} does not exist"
        if heading:
            assert heading in headings(linked), f"{page.name}: {target}: no such heading"


def headings(page: Path) -> set[str]:
    """Anchors as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_named_exist(page: Path) -> None:
    for name in _FILE.findall(page.read_text()):
        assert (ROOT / name).exists(), f"{page.name}: {name} does not exist"


def test_settings_named_on_the_trainers_page_exist() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "trainer").glob("*.py"))
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", (ROOT / "docs" / "trainer.md").read_text()))
    assert len(named) > 10
    assert {name for name in named if not re.search(rf"\b{name}\b", source)} == set()


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    listed = set(_LINK.findall(index))
    assert listed >= {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}


def test_readme_keeps_the_markers_of_its_scores() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("<!-- scores -->") == text.count("<!-- /scores -->") == 1
    table = text.partition("<!-- scores -->")[2].partition("<!-- /scores -->")[0]
    assert len(table.strip().splitlines()) >= 2
