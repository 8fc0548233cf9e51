"""A screen for `play` in a window of its own, with pygame."""

from __future__ import annotations

import collections
import os
from collections.abc import Collection
from typing import Any

import numpy as np

from collectors.keyboard import KEYS
from episode_store.errors import UserError

_NAMES = {"return": "enter"}
_SHORTEST_SIDE = 480
# SDL takes these where it finds no display: nobody sees what they draw.
_UNSEEN = ("dummy", "offscreen")


class WindowScreen:
    """Opens at the first picture.

    To be made before any environment: `headless.prepare` turns SDL's windows off. A driver that the user has named in
    SDL_VIDEODRIVER is taken as it is.

    Raises:
      UserError: pygame is missing, or there is no display.
    """

    def __init__(self) -> None:
        try:
            import pygame
        except ImportError:
            raise UserError(
                "a window needs pygame: pip install 'generalist-agent[toy]', or play in a browser"
            ) from None
        self._pygame: Any = pygame
        self._window: Any = None
        self._presses: collections.deque[str] = collections.deque(maxlen=64)
        self._held: set[str] = set()
        self._closed = False
        try:
            pygame.display.init()
        except pygame.error as error:
            raise UserError(f"no window can be opened here ({error}): play in a browser") from None
        driver = pygame.display.get_driver()
        if driver in _UNSEEN and not os.environ.get("SDL_VIDEODRIVER"):
            pygame.display.quit()
            raise UserError(f"no window can be opened here (no display, SDL would draw {driver}): play in a browser")

    @property
    def is_closed(self) -> bool:
        """Whether the window was closed."""
        self._read()
        return self._closed

    def show(self, frame: np.ndarray, caption: str) -> None:
        """A new picture, uint8 [height, width, 3]."""
        pygame = self._pygame
        scale = max(1, -(-_SHORTEST_SIDE // min(frame.shape[:2])))
        size = (frame.shape[1] * scale, frame.shape[0] * scale)
        if self._window is None or self._window.get_size() != size:
            self._window = pygame.display.set_mode(size)
        picture = pygame.surfarray.make_surface(frame.transpose(1, 0, 2))
        self._window.blit(pygame.transform.scale(picture, size), (0, 0))
        pygame.display.set_caption(caption)
        pygame.display.flip()

    def held(self) -> Collection[str]:
        """Names of the keys held down."""
        self._read()
        return frozenset(self._held)

    def next_press(self) -> str | None:
        """The next key that was pressed."""
        self._read()
        return self._presses.popleft() if self._presses else None

    def forget(self) -> None:
        """Drops the presses that were not asked for yet."""
        self._read()
        self._presses.clear()

    def close(self) -> None:
        """Closes the window."""
        self._pygame.display.quit()

    def _read(self) -> None:
        pygame = self._pygame
        for event in pygame.event.get():
            if event.type == pygame.QUIT:
                self._closed = True
            elif event.type in (pygame.KEYDOWN, pygame.KEYUP):
                name = pygame.key.name(event.key)
                name = _NAMES.get(name, name)
                if name not in KEYS:
                    continue
                if event.type == pygame.KEYDOWN:
                    self._held.add(name)
                    self._presses.append(name)
                else:
                    self._held.discard(name)
