"""The adapter on a stand-in for the engine that is built from the record of its interface.

TensorRT-LLM itself has not run: what the real one does with these arguments is for a machine that has it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.generation import make_request
from support.stages import run_sampling

from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.errors import UserError
from irpo_megatron.generation import load_generator
from irpo_megatron.generation.protocol import Completion, Generator, SampleRequest, SamplingSettings
from irpo_megatron.tokenizer import Tokenizer

MakeRequests = Callable[..., list[SampleRequest]]

STAND_IN = Path(__file__).parents[1] / "support" / "fake_tensorrt_llm"
GREEDY = SamplingSettings(temperature=0.0, top_p=1.0, max_tokens=12)
SAMPLED = SamplingSettings(temperature=0.8, top_p=0.9, max_tokens=12)
TEXTS = ("a", "bc", "what is it", "zz", "fox", "dog", "the", "lazy", "of")


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """The stand-in can be imported; the function says what is to go wrong in it."""
    for name in ("tensorrt_llm", "tensorrt_llm.llmapi"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(STAND_IN))
    path = tmp_path / "faults.json"
    monkeypatch.setenv("FAKE_TENSORRT_LLM", str(path))

    def write(**what: Any) -> None:
        path.write_text(json.dumps({"log": str(tmp_path / "calls.jsonl")} | what))

    write()
    yield write
    for name in ("tensorrt_llm", "tensorrt_llm.llmapi"):
        sys.modules.pop(name, None)


def calls(tmp_path: Path, event: str) -> list[dict[str, Any]]:
    lines = (tmp_path / "calls.jsonl").read_text().splitlines()
    return [call for call in map(json.loads, lines) if call["event"] == event]


def settings(engine: dict[str, Any] | None = None, **changes: Any) -> GenerationConfig:
    values = {"backend": "tensorrt_llm", "tensorrt_llm": engine or {}, "max_tokens": 12, "batch_size": 8}
    return GenerationConfig.model_validate(values | changes)


def complete(generator: Generator, requests: list[SampleRequest], how: SamplingSettings) -> list[Completion]:
    completions = dict(generator.generate(requests, how))
    assert sorted(completions) == list(range(len(requests)))
    return [completions[index] for index in range(len(requests))]


def sample(folder: Path, requests: list[SampleRequest], how: SamplingSettings = SAMPLED, **engine: Any) -> Any:
    with closing(load_generator(settings(engine), folder)) as generator:
        return complete(generator, requests, how)


@pytest.mark.usefixtures("faults")
def test_the_engine_is_started_with_every_limit(tmp_path: Path, model_folder: Path) -> None:
    with closing(load_generator(settings(), model_folder)) as generator:
        assert generator.context == 128
    (start,) = calls(tmp_path, "start")
    assert {key: value for key, value in start.items() if not isinstance(value, dict)} == {
        "event": "start",
        "model": str(model_folder),
        "trust_remote_code": False,
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "max_batch_size": 8,
        "max_input_len": 116,
        "max_seq_len": 128,
        "max_num_tokens": 8192,
        "max_beam_width": 1,
        "enable_chunked_prefill": False,
        "sampler_type": "TRTLLMSampler",
    }
    assert start["kv_cache_config"] == {"enable_block_reuse": True, "free_gpu_memory_fraction": 0.9, "dtype": "auto"}
    assert start["cuda_graph_config"] == {"max_batch_size": 8, "enable_padding": True}


@pytest.mark.usefixtures("faults")
def test_the_section_reaches_the_engine(tmp_path: Path, model_folder: Path) -> None:
    engine = {
        "tensor_parallel": 2,
        "pipeline_parallel": 3,
        "max_seq_len": 64,
        "max_num_tokens": 20,
        "chunked_prefill": True,
        "block_reuse": False,
        "kv_cache_fraction": 0.5,
        "kv_cache_dtype": "fp8",
        "cuda_graphs": False,
        "extra": {"disable_overlap_scheduler": True},
    }
    with closing(load_generator(settings(engine), model_folder)) as generator:
        assert generator.context == 64
    (start,) = calls(tmp_path, "start")
    assert (start["tensor_parallel_size"], start["pipeline_parallel_size"], start["max_input_len"]) == (2, 3, 52)
    assert (start["max_num_tokens"], start["enable_chunked_prefill"], start["cuda_graph_config"]) == (20, True, None)
    assert start["kv_cache_config"] == {"enable_block_reuse": False, "free_gpu_memory_fraction": 0.5, "dtype": "fp8"}
    assert start["disable_overlap_scheduler"] is True


@pytest.mark.parametrize(
    ("engine", "changes", "seen"),
    [
        ({"max_seq_len": 129}, {}, "max_seq_len = 129"),
        ({"max_seq_len": 12}, {}, "max_seq_len = 12, generation.max_tokens = 12"),
        ({}, {"max_tokens": 128}, "max_seq_len = null, generation.max_tokens = 128"),
        ({"max_num_tokens": 50}, {}, "max_num_tokens = 50, and a prompt may have 116 tokens"),
    ],
)
@pytest.mark.usefixtures("faults")
def test_limits_that_contradict_each_other(
    model_folder: Path, engine: dict[str, Any], changes: dict[str, Any], seen: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_generator(settings(engine, **changes), model_folder)
    assert seen in caught.value.seen


@pytest.mark.usefixtures("faults")
def test_each_sample_is_a_request_with_its_seed(
    tmp_path: Path, model_folder: Path, make_requests: MakeRequests
) -> None:
    requests = make_requests(TEXTS, samples=3)
    completions = sample(model_folder, requests)
    submitted = calls(tmp_path, "submit")
    assert [call["seed"] for call in submitted] == [request.seed for request in requests]
    assert {(call["n"], call["temperature"], call["top_p"], call["top_k"]) for call in submitted} == {(1, 0.8, 0.9, 0)}
    assert {call["max_tokens"] for call in submitted} == {12}
    assert {(call["end_id"], *call["stop_token_ids"]) for call in submitted} == {Tokenizer(model_folder).eos_ids}
    assert len({completion.ids for completion in completions}) > 20
    tokenizer = Tokenizer(model_folder)
    for completion in completions:
        assert completion.text == tokenizer.decode(completion.ids)
        ended = completion.ids[-1] in tokenizer.eos_ids
        assert completion.finish_reason == ("stop" if ended else "length")
        assert ended or len(completion.ids) == 12
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}


@pytest.mark.usefixtures("faults")
def test_a_seed_decides_a_sample(model_folder: Path, make_requests: MakeRequests) -> None:
    requests = make_requests(TEXTS, samples=3)
    assert sample(model_folder, requests[::-1]) == sample(model_folder, requests)[::-1]


@pytest.mark.usefixtures("faults")
def test_greedy_decoding(tmp_path: Path, model_folder: Path, make_requests: MakeRequests) -> None:
    requests = make_requests(TEXTS, samples=2)
    completions = sample(model_folder, requests, GREEDY)
    assert completions[::2] == completions[1::2]
    assert {(call["top_k"], call["temperature"], call["top_p"]) for call in calls(tmp_path, "submit")} == {
        (1, None, None)
    }


@pytest.mark.parametrize("fault", [{}, {"drops ends": True}])
def test_an_end_token_that_the_engine_leaves_out_is_put_back(
    faults: Callable[..., None], model_folder: Path, make_requests: MakeRequests, fault: dict[str, Any]
) -> None:
    requests = make_requests(TEXTS, samples=3)
    expected = sample(model_folder, requests)
    faults(**fault)
    assert sample(model_folder, requests) == expected


@pytest.mark.parametrize("fault", [{}, {"overlooks stops": True}])
def test_stop_strings_end_a_sample_and_stay_in_it(
    faults: Callable[..., None], model_folder: Path, make_requests: MakeRequests, fault: dict[str, Any]
) -> None:
    faults(**fault)
    requests = make_requests(TEXTS, samples=3)
    free = sample(model_folder, requests)
    stops = tuple(c.text[2:5] for c in free if len(c.ids) > 4 and c.text[2:5:2].isalpha() and len(c.text) > 5)[:2]
    assert len(stops) == 2
    how = SamplingSettings(temperature=0.8, top_p=0.9, max_tokens=12, stop=stops)
    stopped = sample(model_folder, requests, how)
    cut = [after for before, after in zip(free, stopped, strict=True) if before != after]
    assert len(cut) >= 2
    for completion in cut:
        assert completion.finish_reason == "stop"
        assert completion.text.endswith(stops)


@pytest.mark.parametrize("reason", ["timeout", "cancelled"])
def test_another_finish_reason_is_named(
    faults: Callable[..., None], tmp_path: Path, model_folder: Path, make_requests: MakeRequests, reason: str
) -> None:
    faults(finish_reason=reason, **{"ends at": 4})
    with pytest.raises(UserError, match=f"finish_reason = '{reason}'"):
        sample(model_folder, make_requests(TEXTS))
    assert len(calls(tmp_path, "shutdown")) == 1


def test_a_sampler_that_ignores_seeds_is_found_out(
    faults: Callable[..., None], model_folder: Path, make_requests: MakeRequests
) -> None:
    faults(**{"ignores seeds": True})
    with pytest.raises(UserError, match="TensorRT-LLM said the same in all samples of each of 9 prompts"):
        sample(model_folder, make_requests(TEXTS))
    sample(model_folder, make_requests(TEXTS), GREEDY)


@pytest.mark.parametrize(
    ("fault", "seen", "remedy"),
    [
        ({"start": "CUDA out of memory. Tried to allocate"}, "does not start: RuntimeError: CUDA out", "kv_cache"),
        ({"start": "no device"}, "does not start: RuntimeError: no device", "log"),
        ({"dies at": 7}, "failed while it sampled: RuntimeError: the executor's worker", "the same command goes on"),
        ({"refuses after": 5}, "takes no more requests: RuntimeError: the executor", "the same command goes on"),
        ({"dies at": 7, "last words": "Out of memory"}, "failed while it sampled: RuntimeError: Out", "kv_cache"),
        ({"dies at": 7, "shutdown": "broken pipe"}, "failed while it sampled", "the same command goes on"),
    ],
)
def test_an_engine_that_dies_leaves_one_error(
    faults: Callable[..., None],
    tmp_path: Path,
    model_folder: Path,
    make_requests: MakeRequests,
    fault: dict[str, Any],
    seen: str,
    remedy: str,
) -> None:
    faults(**fault)
    with pytest.raises(UserError) as caught:
        sample(model_folder, make_requests(TEXTS))
    assert seen in caught.value.seen
    assert remedy in caught.value.remedy
    assert len(calls(tmp_path, "shutdown")) == ("start" not in fault)


@pytest.mark.usefixtures("faults")
def test_a_misspelt_argument_is_refused(model_folder: Path) -> None:
    with pytest.raises(UserError, match="does not start: ValueError: LLM got invalid argument: tensor_paralel"):
        load_generator(settings({"extra": {"tensor_paralel": 2}}), model_folder)


@pytest.mark.usefixtures("faults")
def test_a_bounded_number_of_requests_is_in_flight(
    tmp_path: Path, model_folder: Path, make_requests: MakeRequests
) -> None:
    with closing(load_generator(settings(batch_size=2), model_folder)) as generator:
        stream = iter(generator.generate(make_requests(TEXTS), SAMPLED))
        for taken in (1, 2, 3):
            next(stream)
            assert len(calls(tmp_path, "submit")) == 4 * 2 + taken - 1


@pytest.mark.usefixtures("faults")
def test_a_prompt_without_room_is_refused(model_folder: Path, make_requests: MakeRequests) -> None:
    with pytest.raises(UserError, match="longest prompt has 60 tokens"):
        sample(model_folder, make_requests(("a" * 60,)), max_seq_len=64)


@pytest.fixture
def other_python(tmp_path: Path) -> Path:
    """An interpreter of another environment: this one, with the stand-in installed."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{STAND_IN}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


def run_stage(output: Path, problems: Path, folder: Path, python: Path) -> dict[str, bytes]:
    """Sample as the driver does, by the other interpreter; the shards."""
    run_sampling(make_request(output, problems, folder, backend="tensorrt_llm", tensorrt_llm={}, python=python))
    return {path.name: path.read_bytes() for path in output.glob("*.parquet")}


def test_the_whole_stage_goes_on_after_a_death_of_the_engine(
    faults: Callable[..., None], tmp_path: Path, problems: Path, digits_folder: Path, other_python: Path
) -> None:
    whole = run_stage(tmp_path / "whole", problems, digits_folder, other_python)
    assert len(whole) == 3
    faults(**{"dies at": 27})
    with pytest.raises(UserError, match="TensorRT-LLM failed while it sampled"):
        run_stage(tmp_path / "died", problems, digits_folder, other_python)
    assert [path.name for path in (tmp_path / "died").glob("*.parquet")] == ["generations-00000.parquet"]
    faults()
    assert run_stage(tmp_path / "died", problems, digits_folder, other_python) == whole
    assert len(calls(tmp_path, "shutdown")) == len(calls(tmp_path, "start")) == 3
    # The one that died had been given all requests; the second attempt asked for the last seven problems only.
    assert len(calls(tmp_path, "submit")) == 48 + 48 + 28


def test_the_stage_needs_no_torch(
    faults: Callable[..., None], tmp_path: Path, problems: Path, digits_folder: Path, other_python: Path
) -> None:
    """With this backend a base install is enough."""
    faults()
    (tmp_path / "hidden").mkdir()
    for name in ("torch", "transformers", "megatron"):
        (tmp_path / "hidden" / f"{name}.py").write_text("raise ImportError('not in this environment')")
    text = other_python.read_text().replace(f'"{STAND_IN}"', f'"{STAND_IN}:{tmp_path / "hidden"}"')
    other_python.write_text(text)
    assert len(run_stage(tmp_path / "made", problems, digits_folder, other_python)) == 3
