"""The generalist as a policy: prompted with a demonstration, it samples its actions token by token."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from episode_store.errors import UserError
from tokenization.episode_tokenizer import EpisodeTokenizer
from tokenization.return_tokens import ReturnRange, put_first
from tokenization.token_sequence import TokenSequence
from tokenization.vocabulary import CONTINUOUS_OFFSET
from trainer.config import SamplerConfig
from trainer.decoder import Decoder, Fragment
from trainer.model import Generalist
from trainer.shards import TaskData

# A rolling cache takes so many new tokens in one pass; longer ones are cut.
_PASS_TOKENS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActingConfig:
    """One rule of acting for all tasks.

    Attributes:
      temperature: of the softmax that discrete actions are sampled from; 0 takes the most likely.
      bin_temperature: the same for the bins of continuous actions.
      prompt_steps: most steps of the demonstration that an episode is prompted with; 0 for no prompt.
      history_steps: most past steps of the running episode that the network sees; then the older half is dropped.
      rolling_tokens: 0 for the rule of `history_steps`; else the network sees the last so many tokens, whole steps or
        not, and each is computed once however long the episode is. The prompt, which is oldest, is forgotten first. At
        most what it was trained with (`sampler.context_tokens`).
      top_k: samples among so many of the most likely values only; 0 for all.
      return_scale: of a network that was trained with `sampler.condition_on_return`: the return to ask for, 0 that of
        a random policy, 1 the expert's, 1.2 more than the expert's.
      target_return: the same as an absolute number; instead of `return_scale`.
      precision: "fp32", "bf16" or "fp16".
    """

    temperature: float = 1.0
    bin_temperature: float = 0.3
    prompt_steps: int = 2
    history_steps: int = 3
    rolling_tokens: int = 0
    top_k: int = 0
    return_scale: float = 1.0
    target_return: float | None = None
    precision: str = "fp32"

    def __post_init__(self) -> None:
        for name in ("temperature", "bin_temperature", "prompt_steps", "rolling_tokens", "top_k"):
            if not getattr(self, name) >= 0:
                raise UserError(f"acting: {name} {getattr(self, name)}: expected 0 or more")
        if self.history_steps < 1:
            raise UserError(f"acting: history_steps {self.history_steps}: expected 1 or more")
        if not all(math.isfinite(value) for value in (self.return_scale, self.target_return or 0.0)):
            raise UserError("acting: return_scale and target_return: expected finite numbers")

    def check(self, trained: SamplerConfig) -> None:
        """Raises UserError when it asks for what the network was not trained with."""
        if self.rolling_tokens > trained.context_tokens:
            raise UserError(
                f"--rolling-tokens {self.rolling_tokens}: the network was trained with {trained.context_tokens}, "
                "expected at most as many"
            )
        if not trained.condition_on_return and (self.return_scale != 1.0 or self.target_return is not None):
            raise UserError(
                "--return-scale, --target-return: the network was not trained with sampler.condition_on_return, so it "
                "cannot be asked for a return"
            )

    def target(self, returns: ReturnRange) -> float:
        """The return to ask for in a task of this range.

        Raises:
          UserError: the expert's return is not known.
        """
        target = returns.target(self.return_scale) if self.target_return is None else self.target_return
        if not math.isfinite(target):
            raise UserError("the shards do not say what the expert gets: give --target-return")
        return target


class PromptSource:
    """Draws prompts from the better half of a task's demonstrations, as training does.

    Where the network is conditioned on the return, the demonstrations have return tokens, and they are the half whose
    returns are nearest to what is wanted: a prompt should not speak against the wish.

    Args:
      data: the task's demonstrations.
      steps: most steps of a prompt; 0 for none.
      wanted: the return to ask for; None for a network that is not conditioned on it.

    Attributes:
      returns: the range that return tokens are scaled by; None without them.
    """

    def __init__(self, data: TaskData, steps: int, *, wanted: float | None = None) -> None:
        returns = np.array([episode["episode_return"] for episode in data.episodes], dtype=np.float64)
        merit = returns if wanted is None else -np.abs(returns - wanted)
        (self._episodes,) = np.nonzero(merit >= np.median(merit))
        self._data = data if wanted is None else data.with_return_tokens()
        self._steps, self.wanted = steps, wanted
        self.returns = None if wanted is None else data.return_range

    @classmethod
    def of(cls, data: TaskData, config: ActingConfig, trained: SamplerConfig) -> PromptSource:
        """As `config` says, for a network that was `trained` so."""
        wanted = config.target(data.return_range) if trained.condition_on_return else None
        return cls(data, config.prompt_steps, wanted=wanted)

    def draw(self, rng: np.random.Generator) -> TokenSequence | None:
        """1 to `steps` steps of a demonstration: half of the prompts from its end, half from a uniform place."""
        if self._steps == 0:
            return None
        episode = int(rng.choice(self._episodes))
        first, last = (int(offset) for offset in self._data.episode_offsets[episode : episode + 2])
        num_steps = min(int(rng.integers(1, self._steps + 1)), last - first)
        start = last - num_steps
        if rng.random() < 0.5:
            start = int(rng.integers(first, start + 1))
        return self._data.window(start, start + num_steps)


@dataclasses.dataclass(kw_only=True)
class _Slot:
    """What one running episode has seen: the prompt, the past steps, and action tokens not yet fed.

    `wanted` is the return that is asked of the rest of it.
    """

    rng: np.random.Generator
    prompt: Fragment | None
    history: list[Fragment]
    pending: list[int]
    wanted: float
    fresh: bool = True


class GeneralistPolicy:
    """Acts in many episodes of one task at once (a `collectors.rollout.Policy`).

    Where its prompts have return tokens, it asks before each observation for what is still missing of the return.
    """

    def __init__(
        self, model: Generalist, tokenizer: EpisodeTokenizer, prompts: PromptSource, config: ActingConfig, agent_id: str
    ) -> None:
        layout = tokenizer.action_layout
        if layout is None:
            raise UserError(f"task {tokenizer.task.task_id}: its actions are text; it has no environment to act in")
        self.agent_id = agent_id
        self._model, self._tokenizer, self._prompts, self._config = model, tokenizer, prompts, config
        self._layout = layout
        self._slots: dict[int, _Slot] = {}
        self._rows: list[int] = []
        self._decoder: Decoder | None = None

    def begin_episode(self, slot: int, env: Any, seed: int) -> None:
        """Draws the prompt from the episode's seed."""
        rng = np.random.default_rng([seed, 0xAC7])
        prompt = self._prompts.draw(rng)
        fragment = Fragment.of(prompt) if prompt is not None else None
        wanted = self._prompts.wanted or 0.0
        self._slots[slot] = _Slot(rng=rng, prompt=fragment, history=[], pending=[], wanted=wanted)

    def rewarded(self, slot: int, reward: float) -> None:
        """What the last step earned need not be earned by the rest."""
        self._slots[slot].wanted -= reward

    def act(self, slots: Sequence[int], observations: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Actions for the observations of `slots`."""
        encoded = self._tokenizer.encode_observations(observations)
        if self._prompts.returns is not None:
            ids = self._prompts.returns.to_ids(np.array([self._slots[slot].wanted for slot in slots]))
            tokens, targets, offsets = put_first(ids, encoded.tokens, encoded.targets, encoded.timestep_offsets)
            encoded = dataclasses.replace(encoded, tokens=tokens, targets=targets, timestep_offsets=offsets)
        fragments = [Fragment.of(encoded.window(index, index + 1)) for index in range(len(slots))]
        decoder = self._prepare(slots, fragments)
        states = [self._slots[slot] for slot in slots]
        for state, fragment in zip(states, fragments, strict=True):
            self._forget(state)
            state.history.append(fragment)
        hidden: Any = None
        for fresh in (True, False):
            rows = [row for row, state in enumerate(states) if state.fresh == fresh]
            if not rows:
                continue
            parts = [self._whole(states[row]) if fresh else self._new(states[row]) for row in rows]
            result = decoder.feed(parts, rows, fresh=fresh)
            if hidden is None:
                hidden = result.new_zeros((len(states), result.shape[1]))
            hidden[rows] = result
        actions = self._sample(decoder, hidden, states)
        for row, state in enumerate(states):
            state.history[-1] = Fragment.join([state.history[-1], Fragment.of_action(actions[row])])
            state.pending = [int(actions[row, -1])]
            state.fresh = False
        return [self._tokenizer.decode_action(ids) for ids in actions]

    def _sample(self, decoder: Decoder, hidden: Any, states: Sequence[_Slot]) -> np.ndarray:
        """Action tokens [slots, tokens]; each but the last is fed back before the next is drawn."""
        rngs = [state.rng for state in states]
        columns = []
        for index, token in enumerate(self._layout):
            is_bin = token.low >= CONTINUOUS_OFFSET
            temperature = self._config.bin_temperature if is_bin else self._config.temperature
            column = decoder.sample_action(hidden, token.low, token.high, rngs, temperature, self._config.top_k)
            columns.append(column)
            if index + 1 < len(self._layout):
                hidden = decoder.feed([Fragment.of_action([one]) for one in column], range(len(states)))
        return np.stack(columns, axis=1)

    def _forget(self, state: _Slot) -> None:
        """Drops what is too old to be fed again."""
        if self._config.rolling_tokens:
            # The cache rolls by itself; this is for a sequence that has to be begun anew.
            total = sum(len(fragment.tokens) for fragment in state.history)
            while total > self._config.rolling_tokens:
                state.prompt = None
                total -= len(state.history.pop(0).tokens)
        elif len(state.history) >= self._config.history_steps:
            state.history = state.history[len(state.history) - self._config.history_steps // 2 :]
            state.fresh = True

    @staticmethod
    def _whole(state: _Slot) -> Fragment:
        return Fragment.join([*([state.prompt] if state.prompt is not None else []), *state.history])

    @staticmethod
    def _new(state: _Slot) -> Fragment:
        return Fragment.join([Fragment.of_action(state.pending), state.history[-1]])

    def _prepare(self, slots: Sequence[int], fragments: Sequence[Fragment]) -> Decoder:
        """A decoder whose row i is slots[i]; rows of episodes that ended are dropped."""
        window = self._config.rolling_tokens or None
        capacity = window + _PASS_TOKENS - 1 if window else self._most_tokens(slots, fragments)
        if self._decoder is None or self._decoder.capacity < capacity:
            for slot in slots:
                self._slots[slot].fresh = True
            self._decoder = Decoder(
                self._model,
                batch_size=len(slots),
                capacity=capacity if window else capacity + 64,
                precision=self._config.precision,
                window=window,
            )
            self._rows = list(slots)
        elif self._rows != list(slots):
            place = {slot: row for row, slot in enumerate(self._rows)}
            for slot in set(slots) - set(place):
                self._slots[slot].fresh = True
            self._decoder.keep([place.get(slot, -1) for slot in slots])
            self._rows = list(slots)
        return self._decoder

    def _most_tokens(self, slots: Sequence[int], fragments: Sequence[Fragment]) -> int:
        longest_step = max(len(fragment.tokens) for fragment in fragments) + len(self._layout)
        prompts = [self._slots[slot].prompt for slot in slots]
        prompt = max((len(prompt.tokens) for prompt in prompts if prompt is not None), default=0)
        return prompt + (self._config.history_steps + 1) * longest_step + 8
