"""The section `generation` of the configuration: the engines that sample, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from irpo_megatron.config_section import Float, NonNegativeInt, PositiveFloat, PositiveInt, Section, Share


class TransformersConfig(Section):
    """This package's decoding loop around a transformers model, on the CPU or on one GPU."""

    dtype: Literal["fp32", "bf16"] = "fp32"
    """Numbers that it computes with; in `bf16` samples depend on which others are decoded beside them."""
    kv_cache_mib: PositiveInt = 2048
    """MiB for keys and values; fewer samples are decoded at once where they would need more."""


class Fp8WeightsConfig(Section):
    """FP8 copies of the models, made by modelopt where the engine is; GPUs of compute capability 8.9 or more."""

    calibration_prompts: PositiveInt = 512
    """Training problems, drawn by the seed, whose largest activations set the scales; all where there are fewer."""


class TensorRTLLMConfig(Section):
    """TensorRT-LLM 1.2, its LLM API (CUDA only, in an environment of its own)."""

    tensor_parallel: PositiveInt = 1
    """GPUs that each layer is cut over."""
    pipeline_parallel: PositiveInt = 1
    """GPUs, or groups of them, that the layers are dealt out to."""
    max_seq_len: PositiveInt | None = None
    """Longest sequence, prompt and completion together, in tokens; null is the model's context."""
    max_num_tokens: PositiveInt | None = None
    """Tokens of all samples a step; null is 8192, or the longest prompt where that is longer and is not chunked."""
    chunked_prefill: bool = False
    """Compute a prompt longer than `max_num_tokens` in several steps."""
    block_reuse: bool = True
    """Keep the keys and values of a prompt for its other samples."""
    kv_cache_fraction: Annotated[Float, Field(gt=0, lt=1)] = 0.9
    """Share of the GPU memory that the weights leave, for keys and values."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """Numbers that keys and values are kept in; `auto` is as the model folder says."""
    fp8_weights: Fp8WeightsConfig | None = None
    """Sample with FP8 copies of M_t and of the candidates; null samples with the weights as they are."""
    cuda_graphs: bool = True
    """Replay decoding steps as CUDA graphs."""
    timeout_seconds: PositiveFloat = 1800.0
    """An engine that leaves a sample unfinished for so long is given up."""
    extra: dict[str, Any] = Field(default={})
    """Further arguments of its class `LLM`, handed over as they are."""


class OpenAIConfig(Section):
    """A server with OpenAI's HTTP interface, /v1/completions, that serves M_{t-1}: vLLM, SGLang, trtllm-serve."""

    url: Annotated[str, Field(pattern=r"^https?://[^@\s?#]+$")]
    """Its address up to and including /v1, without user or password."""
    model: Annotated[str, Field(pattern=r"\{folder\}")] = "{folder}"
    """The name that it serves a model folder by; `{folder}` stands for the folder's absolute path."""
    concurrency: PositiveInt = 64
    """Requests at once."""
    timeout_seconds: PositiveFloat = 600.0
    """How long one answer may take."""
    retries: NonNegativeInt = 8
    """How often a request is sent again where the server is busy, fails or cannot be reached."""
    extra: dict[str, Any] = Field(default={})
    """Further keys of each request, such as `return_token_ids` (vLLM)."""


class GenerationConfig(Section):
    """How completions are sampled from M_{t-1} (section 3 of the paper: N = 30, T = 0.8 and 1.3)."""

    backend: Literal["transformers", "tensorrt_llm", "openai"] = "transformers"
    """The engine that samples."""
    python: Path | None = None
    """Interpreter of the stages that sample, in an environment of its own; null is the one that runs `irpo`."""
    transformers: TransformersConfig = TransformersConfig()
    """Backend `transformers`: how it computes."""
    tensorrt_llm: TensorRTLLMConfig | None = None
    """Backend `tensorrt_llm`: how that engine runs."""
    openai: OpenAIConfig | None = None
    """Backend `openai`: which server is asked, and how."""
    samples: PositiveInt = 30
    """N: completions a prompt."""
    temperature: PositiveFloat | tuple[PositiveFloat, ...] = 0.8
    """Softmax temperature: one number, or one number an iteration."""
    top_p: Annotated[Float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: the fewest tokens with at least this probability; 1 keeps all (not stated in the paper)."""
    max_tokens: PositiveInt = 512
    """Longest completion in tokens, end token included (not stated in the paper)."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Strings that end a completion as the end token does; they stay part of it."""
    batch_size: PositiveInt = 512
    """Completions decoded at once; changes speed and memory, never the output."""
    shard_prompts: PositiveInt = 64
    """Prompts a shard: what is lost when a worker dies; never changes the output."""
    workers: PositiveInt = 1
    """Processes that sample side by side, on this machine or on each node, each with an engine and GPUs of its own."""
    lease_seconds: PositiveFloat = 120.0
    """A worker that gives no sign of life for so long loses its shards to the others."""
    max_empty_share: Share = 0.2
    """The stage fails where more than this share of the samples is empty."""
    max_truncated_share: Share = 0.5
    """The stage fails where more than this share of the samples hits `max_tokens`."""
    max_repeated_share: Share = 0.95
    """The stage fails where more than this share loops until `max_tokens` or is all that its prompt was answered."""
    max_unparsable_share: Share = 1.0
    """The stage fails where the task finds no final answer in more than this share of the samples."""

    def temperature_at(self, iteration: int) -> float:
        """The temperature of a 1-based iteration: the list's entry for it, or the one number."""
        return self.temperature[iteration - 1] if isinstance(self.temperature, tuple) else self.temperature

    @property
    def fp8_weights(self) -> Fp8WeightsConfig | None:
        """How FP8 copies of the models are made for the engine; None where it loads the models themselves."""
        return None if self.tensorrt_llm is None else self.tensorrt_llm.fp8_weights

    @property
    def gpus_a_worker(self) -> int:
        """GPUs that one worker's engine runs on, on a machine that has any; 0 where the engine is elsewhere."""
        if self.backend == "openai":
            return 0
        engine = self.tensorrt_llm if self.backend == "tensorrt_llm" else None
        return 1 if engine is None else engine.tensor_parallel * engine.pipeline_parallel
