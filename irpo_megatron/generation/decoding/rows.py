"""The samples that are being decoded, one a row of every tensor here; rows leave and others take their place.

Shapes: B rows, T the longest completion in tokens, M own pages of a row at most, S pages of its prompt at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import pad

from irpo_megatron.generation.decoding.pages import pages_for


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRow:
    """A sample that begins."""

    request: int
    seed: int
    prompt: int
    prompt_ids: tuple[int, ...]
    prompt_pages: list[int]


@dataclass(slots=True, kw_only=True)
class Rows:
    """What is known of the rows between two steps.

    A row's own tokens begin with the last one of its prompt, so that its first step is like any other; the pages of its
    prompt hold those before.
    """

    requests: Tensor
    """[B]: positions in the sequence of requests."""
    seeds: Tensor
    """[B]."""
    prompts: Tensor
    """[B]: numbers of their prompts."""
    prompt_tokens: Tensor
    """[B]: tokens in the prompt's pages."""
    prompt_pages: Tensor
    """[B, S]: the prompt's pages, in order."""
    pages: Tensor
    """[B, M]: the row's own, in order, as many as it has come to need."""
    counts: Tensor
    """[B]: tokens chosen so far, which is also the number of own tokens in pages."""
    last: Tensor
    """[B]: the token that the next step feeds."""
    completions: Tensor
    """[B, T]."""
    doubtful: Tensor
    """[B, T], bool: chosen where the logits' error may have decided."""

    def __len__(self) -> int:
        return len(self.requests)

    def add(self, other: Rows) -> None:
        """Append rows."""
        width = max(self.prompt_pages.shape[1], other.prompt_pages.shape[1])
        for rows in (self, other):
            rows.prompt_pages = pad(rows.prompt_pages, (0, width - rows.prompt_pages.shape[1]))
        for field in fields(self):
            setattr(self, field.name, torch.cat([getattr(self, field.name), getattr(other, field.name)]))

    def select(self, chosen: Tensor) -> Rows:
        """The rows that are `chosen` [B], bool."""
        return Rows(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    def parts(self, count: int) -> list[Rows]:
        """Views of the rows, cut into so many parts of about the same size, or fewer."""
        cuts = [torch.tensor_split(getattr(self, field.name), min(count, len(self))) for field in fields(self)]
        return [
            Rows(**dict(zip((field.name for field in fields(self)), part, strict=True)))
            for part in zip(*cuts, strict=True)
        ]

    def append(self, tokens: Tensor, certain: Tensor) -> None:
        """One more token [B] a row, and whether each is certain [B]."""
        self.completions.scatter_(1, self.counts.unsqueeze(-1), tokens.unsqueeze(-1))
        self.doubtful.scatter_(1, self.counts.unsqueeze(-1), ~certain.unsqueeze(-1))
        self.counts += 1
        self.last = tokens

    def cut(self, row: int, count: int, last: int) -> None:
        """Go back to where a row had `count` tokens, and `last` is the last of them."""
        self.counts[row] = count
        self.completions[row, count - 1] = last
        self.last[row] = last

    def tails(self, length: int) -> list[list[int]]:
        """The last `length` tokens of each completion, or all that it has."""
        places = self.counts.unsqueeze(-1) + torch.arange(-length, 0, device=self.counts.device)
        tokens = self.completions.gather(1, places.clamp(min=0)).tolist()
        return [row[-count:] for row, count in zip(tokens, self.counts.clamp(max=length).tolist(), strict=True)]

    def ranks(self) -> Tensor:
        """[B]: the number of rows above each that have its prompt."""
        prompts, order = self.prompts.sort(stable=True)
        ranks = torch.empty_like(order)
        ranks[order] = torch.arange(len(order), device=order.device) - torch.searchsorted(prompts, prompts)
        return ranks


def begin_rows(new: Sequence[NewRow], max_tokens: int, device: torch.device) -> Rows:
    """Rows that have no token yet."""

    def integers(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    most_pages = max((len(row.prompt_pages) for row in new), default=0)
    pages = [row.prompt_pages + [0] * (most_pages - len(row.prompt_pages)) for row in new]
    return Rows(
        requests=integers([row.request for row in new]),
        seeds=integers([row.seed for row in new]),
        prompts=integers([row.prompt for row in new]),
        prompt_tokens=integers([len(row.prompt_ids) - 1 for row in new]),
        prompt_pages=torch.tensor(pages, dtype=torch.long, device=device).view(len(new), most_pages),
        pages=torch.zeros(len(new), pages_for(max_tokens), dtype=torch.long, device=device),
        counts=integers([0] * len(new)),
        last=integers([row.prompt_ids[-1] for row in new]),
        completions=torch.zeros(len(new), max_tokens, dtype=torch.long, device=device),
        doubtful=torch.zeros(len(new), max_tokens, dtype=torch.bool, device=device),
    )
