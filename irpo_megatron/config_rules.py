"""The rules between sections of the configuration, checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from irpo_megatron.config import Config
from irpo_megatron.config_rules_slurm import slurm_rules
from irpo_megatron.errors import UserError


def check_sections(config: Config) -> None:
    """The rules between sections, checked before anything starts.

    Raises:
        UserError: the first rule that is broken.
    """
    for broken, seen, rule, remedy in chain(
        _section_rules(config), _precision_rules(config), _backend_rules(config), slurm_rules(config)
    ):
        if broken:
            raise UserError(seen, rule, remedy)


def _section_rules(config: Config) -> Iterator[tuple[bool, str, str, str]]:
    """(broken?, value seen, rule, remedy) for every rule that spans keys."""
    model, training, parallel = config.model, config.training, config.parallel
    generation, selection, evaluation = config.generation, config.selection, config.evaluation
    origins = [key for key in ("path", "recipe", "random") if getattr(model, key) is not None]
    yield (
        len(origins) != 1,
        f"model has {' and '.join(origins) or 'none of path, recipe, random'}",
        "exactly one of model.path, model.recipe, model.random says where M_0 comes from",
        "set the others to null, for example model.recipe=null" if origins else "set model.path=FOLDER",
    )
    yield (
        config.method != "irpo" and config.loss.alpha == 0,
        f"method = {config.method}, loss.alpha = 0, pairs.per_prompt = {config.pairs.per_prompt}",
        f"method {config.method} has no DPO term, so alpha = 0 leaves nothing to train on its pairs",
        "set loss.alpha above 0, or method=irpo for plain DPO",
    )
    temperatures = generation.temperature
    yield (
        isinstance(temperatures, tuple) and len(temperatures) < config.iterations,
        f"generation.temperature = {temperatures}, iterations = {config.iterations}",
        "a list of temperatures has one for each iteration",
        "lengthen the list or give one number",
    )
    micro_batch_size = "null" if training.micro_batch_size is None else training.micro_batch_size
    pairs_a_pass = parallel.data * (training.micro_batch_size or 1)
    yield (
        training.global_batch_size % pairs_a_pass != 0,
        f"training.global_batch_size = {training.global_batch_size}, training.micro_batch_size = {micro_batch_size}, "
        f"parallel.data = {parallel.data}",
        "the global batch, in pairs, is a multiple of the data-parallel size, times the micro-batch size if given",
        f"use a multiple of {pairs_a_pass}",
    )
    yield (
        parallel.sequence and parallel.tensor == 1,
        "parallel.sequence = true, parallel.tensor = 1",
        "sequence parallelism cuts norms and residuals over the tensor-parallel ranks, so there must be several",
        "set parallel.tensor above 1, or parallel.sequence=false",
    )
    yield (
        parallel.virtual_pipeline > 1 and parallel.pipeline == 1,
        f"parallel.virtual_pipeline = {parallel.virtual_pipeline}, parallel.pipeline = 1",
        "an interleaved pipeline deals out groups of layers in turn to several pipeline stages",
        "set parallel.pipeline above 1, or parallel.virtual_pipeline=1",
    )
    yield (
        training.min_learning_rate > training.learning_rate,
        f"training.min_learning_rate = {training.min_learning_rate} > learning_rate = {training.learning_rate}",
        "the schedule falls from learning_rate to min_learning_rate",
        "lower min_learning_rate",
    )
    yield (
        selection.held_out == 0 and (selection.candidates > 1 or selection.retrain),
        f"selection.held_out = 0, candidates = {selection.candidates}, retrain = {selection.retrain}",
        "checkpoints are judged on held-out problems, so choosing or retraining needs some",
        "set selection.held_out, or selection.candidates=1 and selection.retrain=false",
    )
    too_large = [k for k in evaluation.pass_at if k > evaluation.samples]
    yield (
        evaluation.samples > 0 and bool(too_large),
        f"evaluation.pass_at has {too_large}, evaluation.samples = {evaluation.samples}",
        "pass@k is estimated from at least k samples",
        "raise evaluation.samples or shorten evaluation.pass_at",
    )
    yield (
        config.method == "sft" and config.iterations > 1,
        f"method = sft, iterations = {config.iterations}",
        "gold solutions do not change between iterations: more of the same training is training.epochs",
        "set iterations=1",
    )
    if model.random is not None:
        shape = model.random
        yield (
            shape.hidden_size % (2 * shape.heads) != 0 or shape.heads % shape.kv_heads != 0,
            f"model.random has hidden_size {shape.hidden_size}, heads {shape.heads}, kv_heads {shape.kv_heads}",
            "hidden_size / heads is a whole even number (rotary embeddings), and kv_heads divides heads",
            "choose for example hidden_size=64 heads=4 kv_heads=4",
        )


def _precision_rules(config: Config) -> Iterator[tuple[bool, str, str, str]]:
    """As `_section_rules`, of the section `precision`."""
    fp8 = config.precision.fp8
    if fp8 is None:
        return
    yield (
        config.precision.dtype != "bf16",
        f"precision.dtype = {config.precision.dtype}, precision.fp8.recipe = {fp8.recipe}",
        "FP8 matrix products take and give bf16",
        "set precision.dtype=bf16, or precision.fp8=null",
    )
    kept = [f"{key} = {getattr(fp8, key)}" for key in ("first_layers_bf16", "last_layers_bf16") if getattr(fp8, key)]
    yield (
        fp8.recipe == "delayed" and bool(kept),
        f"precision.fp8 has recipe = delayed, {', '.join(kept)}",
        "recipe delayed keeps the maxima of all layers together, so no layer can be left out",
        "choose recipe tensorwise, or keep no layers in bf16",
    )
    idle = [
        f"{key} = {getattr(fp8, key)}"
        for key in ("amax_history", "margin")
        if getattr(fp8, key) != type(fp8).model_fields[key].default
    ]
    yield (
        fp8.recipe != "delayed" and bool(idle),
        f"precision.fp8 has recipe = {fp8.recipe}, {', '.join(idle)}",
        "only recipe delayed looks back on maxima and has a margin",
        "leave these keys out, or choose recipe delayed",
    )


# Arguments of the engine's class `LLM`, and keys of a request, that the backends give themselves: from keys of their
# own, or because samples would be wrong otherwise.
_OWN_LLM_ARGUMENTS = {
    "model",
    "tokenizer",
    "tokenizer_mode",
    "skip_tokenizer_init",
    "trust_remote_code",
    "backend",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "max_batch_size",
    "max_input_len",
    "max_seq_len",
    "max_num_tokens",
    "max_beam_width",
    "enable_chunked_prefill",
    "kv_cache_config",
    "cuda_graph_config",
    "sampler_type",
}
_OWN_REQUEST_KEYS = {"model", "prompt", "n", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "echo"}


def _backend_rules(config: Config) -> Iterator[tuple[bool, str, str, str]]:
    """As `_section_rules`, of the engines that sample."""
    generation = config.generation
    sections = {"tensorrt_llm": (generation.tensorrt_llm, "{}"), "openai": (generation.openai, "{url: ADDRESS}")}
    section, example = sections.get(generation.backend, (None, ""))
    yield (
        generation.backend in sections and section is None,
        f"generation.backend = {generation.backend}, generation.{generation.backend} = null",
        "this backend has a section of its own",
        f"set 'generation.{generation.backend}={example}', or generation.backend=transformers",
    )
    yield (
        generation.backend != "tensorrt_llm" and generation.fp8_weights is not None,
        f"generation.backend = {generation.backend}, generation.tensorrt_llm.fp8_weights is given",
        "FP8 copies are made for TensorRT-LLM: transformers computes in fp32 or bf16, a server loads what it serves",
        "set generation.backend=tensorrt_llm, or generation.tensorrt_llm.fp8_weights=null",
    )
    for name, own in (("tensorrt_llm", _OWN_LLM_ARGUMENTS), ("openai", _OWN_REQUEST_KEYS)):
        clashing = sorted(own & set(getattr(sections[name][0], "extra", {})))
        yield (
            bool(clashing),
            f"generation.{name}.extra has {', '.join(clashing)}",
            "extra is for what has no key here and is not fixed by this package",
            f"take {', '.join(clashing)} out of it; `irpo config` prints the keys that there are",
        )
