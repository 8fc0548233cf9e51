"""Packages that are not installed: every command names the extra that brings them, in one line."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from collectors import packages
from episode_store.errors import UserError

ROOT = Path(__file__).parents[2]
_WITHOUT = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
from collectors.cli import main
sys.exit(main(sys.argv[2:]))
"""
NEEDED = ("PIL", "gymnasium", "pygame", "scipy", "sb3_contrib", "sentencepiece", "stable_baselines3", "torch")


def run_without(names: str, *words: str) -> tuple[int, list[str], str]:
    """Exit code, lines of the error, standard output."""
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT, names, *words], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert "Traceback" not in done.stderr
    return done.returncode, [line for line in done.stderr.splitlines() if "error:" in line], done.stdout


def test_the_list_needs_none_of_them() -> None:
    code, errors, printed = run_without(",".join(NEEDED), "list", "--count")
    assert (code, errors) == (0, [])
    assert "vqa" in printed


@pytest.mark.parametrize(
    ("names", "words", "message"),
    [
        ("gymnasium", "collect --tasks Taxi-v4", "gymnasium is not installed: pip install 'generalist-agent[collect]'"),
        ("gymnasium", "play --tasks Taxi-v4", "gymnasium is not installed: pip install 'generalist-agent[collect]'"),
        (
            "gymnasium",
            "train --tasks CartPole-v1 --output {folder}",
            "gymnasium is not installed: pip install 'generalist-agent[collect]'",
        ),
        (
            "stable_baselines3",
            "train --tasks CartPole-v1 --output {folder}",
            "stable_baselines3 is not installed: pip install 'generalist-agent[collect]'",
        ),
        (
            "stable_baselines3",
            "collect --tasks CartPole-v1 --output {folder}",
            "stable_baselines3 is not installed: pip install 'generalist-agent[collect]'",
        ),
        (
            "tensorboard",
            "train --tasks CartPole-v1 --output {folder} --tensorboard {folder}/curves",
            "tensorboard is not installed: pip install 'generalist-agent[train]'",
        ),
        (
            "Box2D",
            "collect --tasks LunarLander-v3",
            "environment LunarLander-v3: Box2D is not installed: pip install 'generalist-agent[box2d]'",
        ),
        (
            "pygame",
            "collect --tasks CartPole-rgb-v1 --agent random --output {folder}",
            "cannot be drawn here: pygame is not installed: pip install 'generalist-agent[toy]'",
        ),
        (
            "pygame",
            "play --tasks MountainCar-v0",
            "MountainCar-v0 cannot be drawn here: pygame is not installed: pip install 'generalist-agent[toy]'",
        ),
        (
            "PIL",
            "collect --tasks CartPole-rgb-v1 --agent random --output {folder}",
            "PIL is not installed: pip install 'generalist-agent[collect]'",
        ),
    ],
)
def test_the_extra_is_named(names: str, words: str, message: str, tmp_path: Path) -> None:
    arguments = words.format(folder=tmp_path).split()
    code, errors, _ = run_without(names, *arguments, "--store", str(tmp_path / "store"))
    assert code == 2
    assert len(errors) == 1
    assert errors[0].endswith(message)


def test_scoring_asks_for_the_expert_first() -> None:
    code, errors, _ = run_without("stable_baselines3", "score", "--tasks", "CartPole-v1", "--episodes", "1000000")
    assert code == 2
    assert errors == ["collectors: error: stable_baselines3 is not installed: pip install 'generalist-agent[collect]'"]


def test_an_unknown_package_stays_a_programming_error() -> None:
    with pytest.raises(ModuleNotFoundError), packages.named():
        import no_such_package  # noqa: F401
    assert packages.told(ImportError("nothing to do with modules")) == ""


def test_what_an_error_comes_from_is_found() -> None:
    def draw() -> None:
        try:
            raise ModuleNotFoundError("no pygame.gfxdraw", name="pygame.gfxdraw")
        except ImportError as error:
            raise RuntimeError("cannot draw") from error

    with pytest.raises(RuntimeError) as caught:
        draw()
    assert packages.told(caught.value) == "pygame is not installed: pip install 'generalist-agent[toy]'"
    with pytest.raises(UserError, match="pygame is not installed"), packages.named():
        raise ModuleNotFoundError("x", name="pygame")


def test_the_extras_bring_their_packages() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    called = {"PIL": "pillow", "pygame": "pygame-ce"}  # where the package's name is not its module's
    for module, extra in packages._EXTRAS.items():
        brought = {re.split("[><=]", requirement)[0].replace("-", "_") for requirement in extras[extra]}
        # stable-baselines3 brings torch.
        if module != "torch":
            assert called.get(module, module).replace("-", "_") in brought
