"""Sampling with TensorRT-LLM 1.2: its LLM API, PyTorch backend, on one or several GPUs.

It cannot promise what the protocol asks for: in bf16 the last bits of logits depend on the batch, and there is no
second pass, so a token near a boundary may turn out otherwise in another batch. What holds: every sample is drawn with
its own seed, token ids are those that were drawn, and shards go on after a kill.

`tests/contracts/tensorrt_llm_1_2.json` records every name of that library that is used here.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from irpo_megatron.artifacts import read_json
from irpo_megatron.config_generation import GenerationConfig, TensorRTLLMConfig
from irpo_megatron.errors import UserError
from irpo_megatron.generation.context import check_context
from irpo_megatron.generation.ending import Ending
from irpo_megatron.generation.protocol import Completion, SampleRequest, SamplingSettings
from irpo_megatron.generation.seed_check import refuse_ignored_seeds
from irpo_megatron.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_ENGINE = "TensorRT-LLM"
# Results are awaited in the order of the requests. So many batches are handed over, so that a long sample in front does
# not leave the engine without work.
_BATCHES_IN_FLIGHT = 4
_USUAL_TOKENS_A_STEP = 8192


class TensorRTLLMGenerator:
    """The `tensorrt_llm` backend of the protocol `Generator`."""

    def __init__(self, model_folder: Path, settings: GenerationConfig) -> None:
        """Start the engine on a Hugging Face folder; at most `settings.batch_size` samples are decoded at once.

        Raises:
            UserError: the folder has no usable tokenizer, or the engine does not start: out of GPU memory, for example.
        """
        assert settings.tensorrt_llm is not None, "config_rules demands the section"
        self._settings = settings.tensorrt_llm
        self._tokenizer = Tokenizer(model_folder)
        self._in_flight = _BATCHES_IN_FLIGHT * settings.batch_size
        self._context = _longest_sequence(model_folder, settings)
        try:
            self._llm = _start(model_folder, settings, self._context)
        except Exception as error:  # whatever the library raises: none of its types is documented
            raise _engine_error("does not start", error) from error

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens that the engine was started for."""
        return self._context

    def generate(
        self, requests: Iterable[SampleRequest], settings: SamplingSettings
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (position in `requests`, completion) in the order of the requests.

        Raises:
            UserError: a prompt leaves less room than `max_tokens`; the engine died, ran out of memory or stood still;
                it ended a sample for another reason than an end or `max_tokens`; or it ignores seeds.
        """
        yield from refuse_ignored_seeds(self._sample, requests, settings, engine=_ENGINE)

    def _sample(
        self, requests: Iterable[SampleRequest], settings: SamplingSettings
    ) -> Iterator[tuple[int, Completion]]:
        """One request a sample: the engine computes a prompt once where it may keep its blocks."""
        ending = Ending(_ENGINE, self._tokenizer, settings)
        waiting = enumerate(requests)
        in_flight: deque[tuple[int, Any]] = deque()
        while True:
            for position, request in islice(waiting, self._in_flight - len(in_flight)):
                check_context([request.prompt_ids], settings.max_tokens, self.context)
                in_flight.append((position, self._submit(request, settings)))
            if not in_flight:
                return
            position, future = in_flight.popleft()
            output = self._result(future)
            yield position, ending.complete(output.token_ids, output.finish_reason, output.stop_reason)

    def _submit(self, request: SampleRequest, settings: SamplingSettings) -> Any:
        from tensorrt_llm import SamplingParams

        parameters = SamplingParams(**_sampling(request, settings, self._tokenizer))
        try:
            # A list: a tuple would be taken for a batch.
            return self._llm.generate_async(list(request.prompt_ids), sampling_params=parameters)
        except Exception as error:
            raise _engine_error("takes no more requests", error) from error

    def _result(self, future: Any) -> Any:
        """The one output of a request."""
        try:
            return future.result(timeout=self._settings.timeout_seconds).outputs[0]
        except Exception as error:
            raise _engine_error("failed while it sampled", error) from error

    def close(self) -> None:
        """Shut the engine down: its processes end, and the GPU memory is back."""
        try:
            self._llm.shutdown()
        except Exception:  # of an engine that died before: why it died is the error to tell
            logger.exception("%s does not shut down", _ENGINE)


def _longest_sequence(model_folder: Path, settings: GenerationConfig) -> int:
    """The engine's `max_seq_len`.

    Raises:
        UserError: it leaves no room for a prompt.
    """
    assert settings.tensorrt_llm is not None
    wanted, model = settings.tensorrt_llm.max_seq_len, read_json(model_folder / "config.json")
    context = int(model["max_position_embeddings"])
    longest = context if wanted is None else wanted
    if not settings.max_tokens < longest <= context:
        raise UserError(
            f"generation.tensorrt_llm.max_seq_len = {json.dumps(wanted)}, "
            f"generation.max_tokens = {settings.max_tokens}",
            f"a sequence holds a prompt and generation.max_tokens, and fits the model's context of {context} tokens",
            f"choose a max_seq_len above {settings.max_tokens} and up to {context}"
            if settings.max_tokens < context
            else f"lower generation.max_tokens below {context}",
        )
    return longest


def _start(model_folder: Path, settings: GenerationConfig, longest: int) -> Any:
    from tensorrt_llm import LLM
    from tensorrt_llm.llmapi import CudaGraphConfig, KvCacheConfig

    engine = settings.tensorrt_llm
    assert engine is not None
    # Every limit is given, none left to the library: its default of 1024 tokens a prompt would refuse longer ones. A
    # prompt is followed by max_tokens, so it is at most so long:
    longest_prompt = longest - settings.max_tokens
    return LLM(
        model=str(model_folder),
        trust_remote_code=False,
        tensor_parallel_size=engine.tensor_parallel,
        pipeline_parallel_size=engine.pipeline_parallel,
        max_batch_size=settings.batch_size,
        max_input_len=longest_prompt,
        max_seq_len=longest,
        max_num_tokens=_tokens_a_step(engine, longest_prompt),
        max_beam_width=1,
        enable_chunked_prefill=engine.chunked_prefill,
        kv_cache_config=KvCacheConfig(
            enable_block_reuse=engine.block_reuse,
            free_gpu_memory_fraction=engine.kv_cache_fraction,
            dtype=engine.kv_cache_dtype,
        ),
        cuda_graph_config=CudaGraphConfig(max_batch_size=settings.batch_size, enable_padding=True)
        if engine.cuda_graphs
        else None,
        # The default sampler of this release has one generator for the engine, always seeded alike.
        sampler_type="TRTLLMSampler",
        **engine.extra,
    )


def _tokens_a_step(engine: TensorRTLLMConfig, longest_prompt: int) -> int:
    """`max_num_tokens`.

    Raises:
        UserError: a prompt would not fit one step, and prompts are not chunked.
    """
    needed = 1 if engine.chunked_prefill else longest_prompt
    tokens = engine.max_num_tokens or max(_USUAL_TOKENS_A_STEP, needed)
    if tokens < needed:
        raise UserError(
            f"generation.tensorrt_llm.max_num_tokens = {tokens}, and a prompt may have {needed} tokens",
            "a prompt that is not chunked is computed in one step",
            "raise max_num_tokens, set chunked_prefill=true, or lower max_seq_len",
        )
    return tokens


def _sampling(request: SampleRequest, settings: SamplingSettings, tokenizer: Tokenizer) -> dict[str, Any]:
    """The fields of the library's `SamplingParams` for one sample."""
    if settings.temperature == 0:
        drawn: dict[str, Any] = {"top_k": 1}  # greedy, whichever of the other fields the sampler looks at
    else:
        # top_k = 0 is all tokens; left out it would mean 1. The seed's 63 bits go into an unsigned number of 64.
        drawn = {
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": 0,
            "seed": request.seed,
        }
    end, *others = tokenizer.eos_ids
    return drawn | {
        "n": 1,
        "max_tokens": settings.max_tokens,
        "end_id": end,
        "pad_id": end,  # never seen: rows are not padded
        "stop_token_ids": others or None,
        "stop": list(settings.stop) or None,
        "include_stop_str_in_output": True,
        "detokenize": False,  # our tokenizer decodes
    }


def _engine_error(what: str, error: Exception) -> UserError:
    """One error, whatever the engine raised."""
    if isinstance(error, UserError):
        return error
    cause = f"{type(error).__name__}: {error}".rstrip(": ")
    if "out of memory" in cause.lower():
        return UserError(
            f"{_ENGINE} {what}: {cause}",
            "weights, keys and values, and the memory of one step fit the GPUs",
            "lower generation.tensorrt_llm.kv_cache_fraction, generation.tensorrt_llm.max_num_tokens or "
            "generation.batch_size, or raise generation.tensorrt_llm.tensor_parallel; finished shards are kept",
        )
    return UserError(
        f"{_ENGINE} {what}: {cause}",
        "the engine takes its arguments and lives until the last sample",
        "look for the first error in the log; the same command goes on after the last finished shard",
    )
