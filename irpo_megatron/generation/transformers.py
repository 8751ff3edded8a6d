"""Sampling with a Hugging Face model on the CPU or on one GPU: our own decoding loop around its forward pass.

`generate` of that library draws from one global generator, so a sample would depend on its neighbours. Here a token is
a function of the model, the sample's own tokens and its own uniform numbers (see `sampling`).

The model computes in float32 wherever it runs. Samples are to be the same in every batch, which needs float errors
that are small beside the probabilities of tokens: in bfloat16 every other choice would have to be made twice.

Shapes: B rows being decoded, L tokens in the cache, V token ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irpo_megatron.errors import UserError
from irpo_megatron.generation.batches import Group, cut_batches
from irpo_megatron.generation.context import check_context
from irpo_megatron.generation.protocol import Completion, SampleRequest, SamplingSettings
from irpo_megatron.generation.sampling import greedy, sample, uniform
from irpo_megatron.generation.stopping import StopStrings
from irpo_megatron.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel


class TransformersGenerator:
    """The `transformers` backend of the protocol `Generator`.

    Attributes:
        model: The model, in float32 and in evaluation mode.
    """

    def __init__(self, model_folder: Path, *, batch_size: int) -> None:
        """Load model and tokenizer; at most `batch_size` samples are decoded at once.

        Raises:
            UserError: the folder holds no usable model or tokenizer.
        """
        import torch

        self._folder = model_folder
        self._batch_size = batch_size
        self._tokenizer = Tokenizer(model_folder)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._eos_ids = torch.tensor(self._tokenizer.eos_ids, device=self._device)
        self.model = _load_model(model_folder, self._device)

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens, as the model's config.json says."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def generate(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (position in `requests`, completion), one batch after the other.

        Raises:
            UserError: a prompt leaves less room than `max_tokens`, or the model's logits are not finite.
        """
        check_context((request.prompt_ids for request in requests), settings.max_tokens, self.context)
        for batch in cut_batches(requests, self._batch_size):
            yield from self._decode(batch, requests, settings)

    def close(self) -> None:
        """The model goes with the process, or with whoever forgets it."""

    def _decode(
        self, batch: list[Group], requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> list[tuple[int, Completion]]:
        """Complete every sample of a batch."""
        import torch

        stop = StopStrings(settings.stop, self._tokenizer)
        done: list[tuple[int, Completion]] = []
        # Not around a generator: the mode would leak into whoever iterates.
        with torch.inference_mode():
            rows, logits = self._prefill(batch, requests)
            while True:
                tokens = self._next_tokens(rows, logits, settings)
                rows.append(tokens)
                ended = torch.isin(tokens, self._eos_ids)
                if stop:
                    tails = rows.completions[:, -stop.tail :].tolist()
                    ended |= torch.tensor([stop.complete(tail) for tail in tails], device=self._device)
                leaving = ended | (rows.completions.shape[1] == settings.max_tokens)
                if leaving.any():
                    done += self._completions(rows, ended, leaving)
                    rows.keep(~leaving)
                if not len(rows.requests):
                    return done
                logits = self._step(rows, tokens[~leaving])

    def _prefill(self, batch: list[Group], requests: Sequence[SampleRequest]) -> tuple[_Rows, Tensor]:
        """Run each prompt of the batch once; the rows of its samples share what came out.

        Returns:
            One row a sample, and the logits [B, V] of each row's first token.
        """
        import torch

        width = max(len(group.prompt_ids) for group in batch)
        # The mask hides what stands in the padding, so any id will do.
        padded = [[0] * (width - len(group.prompt_ids)) + list(group.prompt_ids) for group in batch]
        visible = [[0] * (width - len(group.prompt_ids)) + [1] * len(group.prompt_ids) for group in batch]
        prompts = torch.tensor(padded, device=self._device)
        mask = torch.tensor(visible, device=self._device)
        output = self.model(
            input_ids=prompts,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=-1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
        )
        members = [index for group in batch for index in group.members]
        sizes = torch.tensor([len(group.members) for group in batch], device=self._device)
        prompt_of_row = torch.repeat_interleave(torch.arange(len(batch), device=self._device), sizes)
        output.past_key_values.batch_select_indices(prompt_of_row)
        rows = _Rows(
            requests=torch.tensor(members, device=self._device),
            seeds=torch.tensor([requests[index].seed for index in members], device=self._device),
            prompts=prompts[prompt_of_row],
            mask=mask[prompt_of_row],
            completions=torch.empty(len(members), 0, dtype=torch.long, device=self._device),
            cache=output.past_key_values,
        )
        return rows, output.logits[prompt_of_row, -1]

    def _step(self, rows: _Rows, tokens: Tensor) -> Tensor:
        """Feed each row's last token [B]: the logits [B, V] of its next one."""
        output = self.model(
            input_ids=tokens.unsqueeze(-1),
            attention_mask=rows.mask,
            position_ids=rows.mask.sum(dim=-1, keepdim=True) - 1,
            past_key_values=rows.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _next_tokens(self, rows: _Rows, logits: Tensor, settings: SamplingSettings) -> Tensor:
        """The next token [B] of each row: the one that the canonical logits choose."""
        uniforms = uniform(rows.seeds, rows.completions.shape[1])
        tokens, certain = _choose(logits, uniforms, settings)
        if not certain.all():
            for row in (~certain).nonzero().flatten().tolist():
                canonical = self._canonical_logits(rows.sequence(row))
                tokens[row] = _choose(canonical, uniforms[row : row + 1], settings)[0].item()
        return tokens

    def _canonical_logits(self, sequence: Tensor) -> Tensor:
        """The logits [1, V] after one unpadded sequence [L], computed without a cache: no other row has a part in them.

        Raises:
            UserError: they are not finite.
        """
        logits: Tensor = self.model(input_ids=sequence.unsqueeze(0), use_cache=False, logits_to_keep=1).logits[:, -1]
        if not logits.isfinite().all():
            raise UserError(
                f"the logits of {self._folder} are not finite after {len(sequence)} tokens",
                "a model must give every token a finite logit",
                "its training has diverged or its files are damaged: train with a lower learning rate, or restore it",
            )
        return logits

    def _completions(self, rows: _Rows, ended: Tensor, leaving: Tensor) -> list[tuple[int, Completion]]:
        """The rows that are `leaving` [B], as (position of the request, completion)."""
        columns = (rows.requests, rows.completions, ended)
        return [
            (
                request,
                Completion(
                    ids=tuple(ids), text=self._tokenizer.decode(ids), finish_reason="stop" if stopped else "length"
                ),
            )
            for request, ids, stopped in zip(*(column[leaving].tolist() for column in columns), strict=True)
        ]


@dataclass(slots=True, kw_only=True)
class _Rows:
    """The samples of a batch that are still being decoded."""

    requests: Tensor
    """[B]: positions in the sequence of requests."""
    seeds: Tensor
    """[B]."""
    prompts: Tensor
    """[B, longest prompt], padded on the left."""
    completions: Tensor
    """[B, tokens so far]."""
    mask: Tensor
    """[B, L]: 0 where the cache holds padding, else 1."""
    cache: Any
    """Keys and values of L tokens a row: all but the last one chosen."""

    def append(self, tokens: Tensor) -> None:
        """Add one token [B] a row."""
        import torch

        self.completions = torch.cat([self.completions, tokens.unsqueeze(-1)], dim=-1)
        self.mask = torch.cat([self.mask, torch.ones_like(tokens).unsqueeze(-1)], dim=-1)

    def keep(self, chosen: Tensor) -> None:
        """Drop the rows that are not `chosen` [B], bool."""
        self.requests = self.requests[chosen]
        self.seeds = self.seeds[chosen]
        self.prompts = self.prompts[chosen]
        self.completions = self.completions[chosen]
        self.mask = self.mask[chosen]
        self.cache.batch_select_indices(chosen.nonzero().flatten())

    def sequence(self, row: int) -> Tensor:
        """Prompt and completion of one row, without the padding."""
        import torch

        visible = self.mask[row, : self.prompts.shape[1]].bool()
        return torch.cat([self.prompts[row][visible], self.completions[row]])


def _choose(logits: Tensor, uniforms: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """Token ids [B] and whether each is certain [B]."""
    if settings.temperature == 0:
        return greedy(logits)
    return sample(logits, uniforms, temperature=settings.temperature, top_p=settings.top_p)


def _load_model(folder: Path, device: torch.device) -> PreTrainedModel:
    """The model of a Hugging Face folder, complete and without code of its own, in float32 and in evaluation mode.

    Raises:
        UserError: transformers cannot load it, or the folder lacks some of its weights.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        # Any: the library declares the pair that it returns here as one model.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
        model, loading = loaded
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder}: {error}",
            "a model is a Hugging Face folder that transformers loads without code from that folder",
            "restore config.json and the safetensors files",
        ) from error
    missing = sorted(loading["missing_keys"])
    if missing:
        # transformers would fill them with random numbers and go on.
        raise UserError(
            f"{folder} lacks {len(missing)} weights, for example {missing[0]}",
            "a checkpoint holds every weight of its model",
            "export or download the checkpoint again",
        )
    ready: PreTrainedModel = model.float().to(device).eval()
    return ready
