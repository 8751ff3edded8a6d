"""Continuous batching: a prompt is computed once for all its samples, and a sample that ends makes room at once.

Requests are pulled one by one, as there is room for them among the rows and in the memory for keys and values.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from irpo_megatron.errors import UserError
from irpo_megatron.generation.context import check_context
from irpo_megatron.generation.decoding.cpu_step import CpuStep
from irpo_megatron.generation.decoding.exact import ExactModel
from irpo_megatron.generation.decoding.layers import Layers
from irpo_megatron.generation.decoding.pages import PAGE, Pages, page_shape, pages_for
from irpo_megatron.generation.decoding.prompts import PromptPages
from irpo_megatron.generation.decoding.rows import NewRow, Rows, begin_rows
from irpo_megatron.generation.decoding.sampling import EXACT, choose, uniform
from irpo_megatron.generation.decoding.threads import Threads
from irpo_megatron.generation.decoding.torch_step import TorchStep
from irpo_megatron.generation.protocol import Completion, SampleRequest, SamplingSettings
from irpo_megatron.generation.stopping import StopStrings
from irpo_megatron.tokenizer import Tokenizer

# Doubtful samples are looked at together: one alone would keep the cores no busier.
_CHECKED_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A model that is ready to decode.

    Attributes:
        exact: None where choices are taken as they come.
        most_rows: Samples decoded at once.
        memory_bytes: For keys and values.
    """

    model: Any
    layers: Layers
    exact: ExactModel | None
    tokenizer: Tokenizer
    most_rows: int
    memory_bytes: int
    threads: Threads

    @property
    def context(self) -> int:
        """Longest sequence in tokens, as the model's config.json says."""
        context: int = self.model.config.max_position_embeddings
        return context


@dataclass(slots=True, kw_only=True)
class _Prompt:
    """A prompt in pages, while samples of it are decoded."""

    number: int
    ids: tuple[int, ...]
    pages: list[int]
    rows: int = 0


class Batch:
    """The samples of one call that are being decoded."""

    def __init__(self, engine: Engine, settings: SamplingSettings) -> None:
        self._engine = engine
        self._settings = settings
        self._device = engine.model.device
        self._bounds = EXACT if engine.exact is None else engine.exact.bounds(settings.temperature)
        self._stop = StopStrings(settings.stop, engine.tokenizer)
        self._eos_ids = torch.tensor(engine.tokenizer.eos_ids, device=self._device)
        shape = page_shape(engine.model)
        self._page_bytes = shape.page_bytes
        self._most_pages = engine.memory_bytes // shape.page_bytes
        self._row_pages = pages_for(settings.max_tokens)
        # A CPU's memory is only taken as it is touched, and `_has_room` counts that; a GPU's is taken at once.
        capacity = self._most_pages if self._device.type == "cpu" else self._most_pages // 2
        self._own, self._shared = Pages(capacity, shape), Pages(capacity, shape)
        self._operations = CpuStep if self._device.type == "cpu" else TorchStep
        self._prompts: dict[tuple[int, ...], _Prompt] = {}
        self._by_number: dict[int, _Prompt] = {}
        self._last_number = 0
        self._rows = begin_rows([], settings.max_tokens, self._device)
        self._doubted = begin_rows([], settings.max_tokens, self._device)
        """Rows that have ended, if their doubtful tokens are right."""

    def __len__(self) -> int:
        return len(self._rows) + len(self._doubted)

    def admit(self, waiting: Waiting) -> None:
        """Begin as many of the waiting samples as there is room for.

        Raises:
            UserError: a prompt leaves less room than `max_tokens`, or a single sample needs more memory than there is.
        """
        new: list[NewRow] = []
        fresh: list[_Prompt] = []
        while len(self._rows) + len(new) < self._engine.most_rows and (request := waiting.next) is not None:
            prompt = self._prompts.get(request.prompt_ids)
            if prompt is None:
                check_context([request.prompt_ids], self._settings.max_tokens, self._engine.context)
            prompt_pages = pages_for(len(request.prompt_ids) - 1) if prompt is None else 0
            if not self._has_room(prompt_pages):
                if not len(self) and not new:
                    raise self._no_room(len(request.prompt_ids))
                break
            if prompt is None:
                prompt = self._begin_prompt(request.prompt_ids)
                fresh.append(prompt)
            self._own.reserved += self._row_pages
            prompt.rows += 1
            new.append(
                NewRow(
                    request=waiting.position,
                    seed=request.seed,
                    prompt=prompt.number,
                    prompt_ids=prompt.ids,
                    prompt_pages=prompt.pages,
                )
            )
            waiting.advance()
        if new:
            self._compute_prompts([prompt for prompt in fresh if prompt.pages])
            self._rows.add(begin_rows(new, self._settings.max_tokens, self._device))

    def step(self) -> list[tuple[int, Completion]]:
        """One more token for every row: what is complete with it, by the position of its request.

        Raises:
            UserError: the model's logits are not finite.
        """
        complete: list[tuple[int, Completion]] = []
        if len(self._rows):
            self._choose_tokens()
            ended, leaving = self._ends(self._rows)
            if leaving.any():
                complete += self._leave(ended, leaving)
        if len(self._doubted) >= _CHECKED_AT_ONCE or not len(self._rows):
            complete += self._check()
        return complete

    def _leave(self, ended: Tensor, leaving: Tensor) -> list[tuple[int, Completion]]:
        """Finish the rows that end and are certain, and put the others aside."""
        certain = ~self._rows.doubtful.any(dim=1)
        complete = self._finish(self._rows.select(leaving & certain), ended[leaving & certain])
        self._doubted.add(self._rows.select(leaving & ~certain))
        self._rows = self._rows.select(~leaving)
        self._rearrange()
        return complete

    def _choose_tokens(self) -> None:
        rows, engine = self._rows, self._engine
        full = (rows.counts % PAGE == 0).nonzero().flatten()
        if len(full):
            pages = torch.tensor(self._own.take(len(full)), device=self._device)
            rows.pages[full, rows.counts[full] // PAGE] = pages
        chosen = self._engine.threads.map(self._choose_part, rows.parts(self._engine.threads.count))
        tokens, certain = (torch.cat(parts) for parts in zip(*chosen, strict=True))
        rows.append(tokens, certain | (engine.exact is None))

    @torch.inference_mode()
    def _choose_part(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """The next token of each row, and whether it is certain; called in several threads."""
        step = self._operations(self._own, self._shared, rows)
        logits = self._engine.layers.logits(rows.last, rows.prompt_tokens + rows.counts, step)
        if not logits.isfinite().all():
            raise self._not_finite(rows, logits)
        return choose(logits, uniform(rows.seeds, rows.counts), self._settings, self._bounds)

    def _check(self) -> list[tuple[int, Completion]]:
        """Make the doubtful choices again; a wrong one takes its row back to there, to go on if it does not end so."""
        rows, exact = self._doubted, self._engine.exact
        if exact is None or not len(rows):
            return []
        prompts = [self._by_number[number].ids for number in rows.prompts.tolist()]
        for row, place, token in list(exact.corrections(rows, prompts, self._settings)):
            unused = slice(pages_for(place + 1), pages_for(int(rows.counts[row])))
            self._own.give_back(rows.pages[row, unused].tolist())
            rows.cut(row, place + 1, token)
        rows.doubtful[:] = False
        ended, leaving = self._ends(rows)
        self._doubted = rows.select(torch.zeros_like(leaving))
        self._rows.add(rows.select(~leaving))
        complete = self._finish(rows.select(leaving), ended[leaving])
        self._rearrange()
        return complete

    def _ends(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Whether each row's last token ends it, and whether it ends now, by that or by its length: [B], bool."""
        ended = torch.isin(rows.last, self._eos_ids)
        if self._stop and len(rows):
            stopped = [self._stop.complete(tail) for tail in rows.tails(self._stop.tail)]
            ended |= torch.tensor(stopped, device=self._device)
        return ended, ended | (rows.counts == self._settings.max_tokens)

    def _has_room(self, prompt_pages: int) -> bool:
        own, shared = self._own.touched_with(self._row_pages), self._shared.touched_with(prompt_pages)
        return own + shared <= self._most_pages

    def _begin_prompt(self, ids: tuple[int, ...]) -> _Prompt:
        self._last_number += 1
        count = pages_for(len(ids) - 1)
        self._shared.reserved += count
        prompt = _Prompt(number=self._last_number, ids=ids, pages=self._shared.take(count))
        self._prompts[ids] = self._by_number[prompt.number] = prompt
        return prompt

    def _compute_prompts(self, prompts: list[_Prompt]) -> None:
        """Keys and values of all tokens of some prompts but the last, in one pass."""
        if not prompts:
            return
        ids = pad_sequence([torch.tensor(prompt.ids[:-1]) for prompt in prompts], batch_first=True)
        counts = torch.tensor([len(prompt.pages) for prompt in prompts], device=self._device)
        store = PromptPages(
            self._shared,
            torch.tensor([page for prompt in prompts for page in prompt.pages], device=self._device),
            torch.arange(pages_for(ids.shape[1]), device=self._device) < counts.unsqueeze(-1),
        )
        self._engine.model.base_model(input_ids=ids.to(self._device), use_cache=False, store=store)

    def _finish(self, rows: Rows, ended: Tensor) -> list[tuple[int, Completion]]:
        """The completions of rows that leave, whose pages go back.

        Args:
            ended: [B], bool: by a token, not by their length.
        """
        complete = []
        columns = (rows.requests, rows.completions, rows.counts, rows.pages, rows.prompts, ended)
        for request, tokens, count, pages, number, stopped in zip(*(c.tolist() for c in columns), strict=True):
            ids = tuple(tokens[:count])
            text = self._engine.tokenizer.decode(ids)
            complete.append((request, Completion(ids=ids, text=text, finish_reason="stop" if stopped else "length")))
            self._own.give_back(pages[: pages_for(count)])
            self._own.reserved -= self._row_pages
            self._leave_prompt(self._by_number[number])
        return complete

    def _rearrange(self) -> None:
        """After rows have come or gone: no gaps between pages."""
        moved = self._own.close_gaps()
        if moved is not None:
            for rows in (self._rows, self._doubted):
                rows.pages = moved[rows.pages]
        moved = self._shared.close_gaps()
        if moved is not None:
            for rows in (self._rows, self._doubted):
                rows.prompt_pages = moved[rows.prompt_pages]
            for prompt in self._prompts.values():
                prompt.pages = moved[prompt.pages].tolist()

    def _leave_prompt(self, prompt: _Prompt) -> None:
        prompt.rows -= 1
        if not prompt.rows:
            self._shared.give_back(prompt.pages)
            self._shared.reserved -= len(prompt.pages)
            del self._prompts[prompt.ids], self._by_number[prompt.number]

    def _no_room(self, prompt_tokens: int) -> UserError:
        pages = self._row_pages + pages_for(prompt_tokens - 1)
        needed = -(-pages * self._page_bytes // 2**20)
        return UserError(
            f"a sample of a prompt of {prompt_tokens} tokens needs {needed} MiB for its keys and values, "
            f"generation.transformers.kv_cache_mib = {self._engine.memory_bytes // 2**20}",
            "the memory for keys and values holds at least one sample of generation.max_tokens tokens",
            f"raise generation.transformers.kv_cache_mib to {needed} or more, or lower generation.max_tokens",
        )

    def _not_finite(self, rows: Rows, logits: Tensor) -> UserError:
        row = int((~logits.isfinite().all(dim=-1)).nonzero()[0])
        length = int(rows.prompt_tokens[row] + rows.counts[row]) + 1
        return UserError(
            f"the logits of {self._engine.model.name_or_path} are not finite after {length} tokens",
            "a model must give every token a finite logit",
            "its training has diverged or its files are damaged: train with a lower learning rate, or restore it",
        )


class Waiting:
    """The requests that have not begun; one is pulled when it is looked at.

    Attributes:
        position: The position in the sequence of the next one.
    """

    def __init__(self, requests: Iterable[SampleRequest]) -> None:
        self._requests = iter(requests)
        self._pulled: list[SampleRequest] = []
        self.position = 0

    @property
    def next(self) -> SampleRequest | None:
        """The next one, or None at the end."""
        if not self._pulled:
            self._pulled.extend(itertools.islice(self._requests, 1))
        return self._pulled[0] if self._pulled else None

    def advance(self) -> None:
        """The next one has begun."""
        self._pulled.clear()
        self.position += 1
