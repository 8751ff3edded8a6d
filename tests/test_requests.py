"""A request holds what its stage reads, survives the way to the stage's process, and misses no dependency."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from irpo_megatron import requests
from irpo_megatron.artifacts import flatten, read_json, write_json
from irpo_megatron.config import Config, EvaluationConfig, SelectionConfig, is_neutral
from irpo_megatron.config_file import validate
from irpo_megatron.config_section import Section
from irpo_megatron.requests import (
    EvaluateRequest,
    GenerateRequest,
    JudgeRequest,
    PairsRequest,
    ProblemsRequest,
    ReportRequest,
    Request,
    SamplingJob,
    ScoreRequest,
    TrainRequest,
    WorkerRequest,
)

REQUESTS = [
    kind for kind in vars(requests).values() if isinstance(kind, type) and issubclass(kind, Request) and kind != Request
]
every_request = pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.__name__)

TREE: dict[str, Any] = {
    "name": "run",
    "task": "math",
    "seed": 3,
    "model": {"random": {"tokenizer": {"kind": "bpe", "vocabulary": 300}}},
    "data": {"train": "train.jsonl", "test": "test.jsonl"},
    "generation": {
        "temperature": [0.8, 1, 1.3, 1.3],
        "stop": ["\n\n", "é"],
        "tensorrt_llm": {"fp8_weights": {}},
        "openai": {"url": "http://server/v1"},
    },
    "selection": {"held_out": 0.125},
    "training": {"learning_rate": 1e-4},
}


def config(**changes: Any) -> Config:
    return validate(TREE | changes, Path("config.yaml"))


def build(kind: type[Request]) -> Request:
    """A request as the loop builds it: configuration by name, a made-up value for every input."""
    values = kind.config_values(config())
    for name, field in kind.model_fields.items():
        if name in values or not field.is_required():
            continue
        options = typing.get_args(field.annotation) or (field.annotation,)
        if field.annotation == dict[str, Path]:
            values[name] = {".": Path("a/b"), "step-000025": Path("/c")}
        elif field.annotation == tuple[SamplingJob, ...]:
            values[name] = build(GenerateRequest).sampling()
        else:
            values[name] = {Path: Path("some") / name, int: 2, str: name}[options[0]]
    return kind(**values)


def test_requests_are_found() -> None:
    assert {ProblemsRequest, GenerateRequest, ScoreRequest, PairsRequest, TrainRequest, ReportRequest} < set(REQUESTS)


@every_request
def test_a_request_survives_the_way_to_its_process(kind: type[Request], tmp_path: Path) -> None:
    request = build(kind)
    write_json(tmp_path / "request.json", request.model_dump(mode="json"))
    assert kind.model_validate(read_json(tmp_path / "request.json")) == request


def test_values_keep_their_kinds_on_the_way(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", build(GenerateRequest).model_dump(mode="json"))
    read = GenerateRequest.model_validate(read_json(tmp_path / "r.json"))
    assert read.generation.temperature == (0.8, 1.0, 1.3, 1.3)
    assert read.generation.stop == ("\n\n", "é")
    assert read.selection.held_out == 0.125
    assert read.model_folder == Path("some/model_folder")


def test_null_inputs_survive(tmp_path: Path) -> None:
    request = build(PairsRequest).model_copy(update={"generations": None, "scores": None})
    write_json(tmp_path / "r.json", request.model_dump(mode="json"))
    assert PairsRequest.model_validate(read_json(tmp_path / "r.json")) == request


@every_request
def test_a_field_named_like_a_key_is_that_key(kind: type[Request]) -> None:
    for name, field in kind.model_fields.items():
        if name in Config.model_fields:
            theirs = Config.model_fields[name].annotation
            # A stage may take a closed choice of words as any word.
            assert field.annotation == theirs or (
                field.annotation is str and typing.get_origin(theirs) is typing.Literal
            )


@every_request
def test_a_request_refuses_what_it_does_not_know(kind: type[Request]) -> None:
    dumped = build(kind).model_dump(mode="json")
    with pytest.raises(ValidationError, match="extra_forbidden"):
        kind.model_validate(dumped | {"unheard_of": 1})
    with pytest.raises(ValidationError, match="Field required"):
        kind.model_validate({key: value for key, value in dumped.items() if key != "output"})


def test_config_values() -> None:
    values = ScoreRequest.config_values(config())
    assert values == {"task": "math", "scoring": config().scoring}
    assert ReportRequest.config_values(config()) == {}


def test_recorded_config() -> None:
    assert ScoreRequest.recorded_config(config()) == {"task": "math", "scoring.grading": None}
    assert ProblemsRequest.recorded_config(config()) == {
        "task": "math",
        "seed": 3,
        "data.train": "train.jsonl",
        "data.test": "test.jsonl",
        "data.train_limit": None,
        "data.test_limit": None,
        "data.problems_per_iteration": None,
        "selection.held_out": 0.125,
        "selection.candidates": 4,
        "selection.retrain": False,
    }


def test_what_cannot_change_a_result_is_not_recorded() -> None:
    recorded = GenerateRequest.recorded_config(config()) | TrainRequest.recorded_config(config())
    assert {"generation.samples", "generation.stop", "launch.threads", "precision.dtype"} <= recorded.keys()
    neutral = {"generation.batch_size", "generation.shard_prompts", "tracking.to", "runs", "iterations"}
    layout = {"parallel.data", "parallel.context", "training.micro_batch_size", "training.shared_prompt"}
    assert not (neutral | layout) & recorded.keys()


# Another valid value for every key of the tree.
CHANGES: dict[str, Any] = {
    "name": "other",
    "runs": "elsewhere",
    "task": "arc",
    "method": "star",
    "model.path": "m",
    "model.recipe": "r.yaml",
    "model.random.tokenizer.kind": "characters",
    "conversion.dtype": "bf16",
    "data.train": "other.jsonl",
    "data.test": "other.jsonl",
    "generation.backend": "openai",
    "generation.python": "other/python",
    "generation.transformers.dtype": "bf16",
    "generation.tensorrt_llm.kv_cache_dtype": "fp8",
    "generation.tensorrt_llm.extra": {"attn_backend": "TRTLLM"},
    "generation.openai.url": "http://other/v1",
    "generation.openai.model": "models{folder}",
    "generation.openai.extra": {"return_token_ids": True},
    "generation.temperature": 0.7,
    "generation.stop": ["."],
    "generation.top_p": 0.5,
    "scoring.grading": "strict",
    "launch.launcher": "slurm",
    "launch.slurm": {"nodes": 2, "time_limit_minutes": 60},
    "training.shared_prompt": False,
    "training.recompute": "full",
    "precision.dtype": "bf16",
    "precision.fp8": {"recipe": "blockwise"},
    "training.schedule": "cosine",
    "selection.held_out": 7,
    "evaluation.pass_at": [1],
    "tracking.to": [],
}


def change(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if value is None:
        return 5
    assert isinstance(value, (int, float))
    return value + 1 if isinstance(value, int) else value / 2 + 0.01


KEYS = sorted(flatten(config().model_dump(mode="json")).keys())


@pytest.mark.parametrize("key", KEYS)
def test_every_key_that_a_request_holds_is_recorded_unless_it_is_neutral(key: str) -> None:
    tree = config().model_dump(mode="json")
    node = tree
    *parents, last = key.split(".")
    for part in parents:
        node = node[part]
    node[last] = CHANGES[key] if key in CHANGES else change(node[last])
    other = validate(tree, Path("config.yaml"))
    for kind in REQUESTS:
        reads = kind.config_values(other) != kind.config_values(config())
        records = kind.recorded_config(other) != kind.recorded_config(config())
        assert records == (reads and not is_neutral(key)), kind
        assert not reads or key.split(".")[0] in kind.model_fields


def built_from(kind: type[Any], **fields: Any) -> Any:
    """A request of iteration 2, its inputs made up."""
    return kind(output="out", iteration=2, problems="problems", **fields, **kind.config_values(config()))


def test_what_generation_samples() -> None:
    request = built_from(GenerateRequest, model_folder="model")
    (job,) = request.sampling()
    assert (job.prefix, job.samples, job.seed_names, job.guarded) == ("generations", 30, ("sample", 2), True)
    assert (job.temperature, job.draw) == (1.0, None)  # the second of the list
    assert job.problems == (Path("problems/train.parquet"),)
    retraining = request.model_copy(update={"selection": SelectionConfig(held_out=3, retrain=True)})
    (job,) = retraining.sampling()
    assert job.problems == (Path("problems/train.parquet"), Path("problems/held_out.parquet"))


def test_what_evaluation_samples() -> None:
    request = built_from(EvaluateRequest, model_folder="model")
    jobs = request.sampling()
    assert [(job.prefix, job.temperature, job.samples) for job in jobs] == [("greedy", 0, 1), ("samples", 0.8, 32)]
    assert {job.seed_names for job in jobs} == {("evaluate", 2)}
    assert not any(job.guarded for job in jobs)
    greedy_only = request.model_copy(update={"evaluation": EvaluationConfig(samples=0)})
    assert [job.prefix for job in greedy_only.sampling()] == ["greedy"]


def test_what_the_judge_has_sampled() -> None:
    request = built_from(JudgeRequest, candidates={"step-000100": "c", "step-000005": "a", "step-000020": "b"})
    found = [(job.directory, job.model_folder, job.temperature) for job in request.sampling()]
    assert found == [
        (Path("judged/step-000005"), Path("a"), 0),
        (Path("judged/step-000020"), Path("b"), 0),
        (Path("judged/step-000100"), Path("c"), 0),
    ]


def test_a_request_to_workers_is_that_of_the_stage() -> None:
    stage = built_from(GenerateRequest, model_folder="model")
    request = WorkerRequest.of(stage)
    assert (request.jobs, request.output, request.generation) == (stage.sampling(), stage.output, stage.generation)
    assert (request.seed, request.task, request.iteration) == (3, "math", 2)


@pytest.mark.parametrize(
    ("section", "gpus"),
    [
        ({}, 1),
        ({"backend": "tensorrt_llm", "tensorrt_llm": {"tensor_parallel": 4, "pipeline_parallel": 2}}, 8),
        ({"backend": "openai", "openai": {"url": "http://server/v1"}}, 0),
    ],
)
def test_gpus_a_worker(section: dict[str, Any], gpus: int) -> None:
    assert config(generation=section).generation.gpus_a_worker == gpus


def test_what_needs_the_engine_may_have_an_interpreter_of_its_own() -> None:
    values = TREE["generation"] | {"python": "other/python"}
    found = {
        kind.__name__: kind.model_construct(**kind.config_values(config(generation=values))).python for kind in REQUESTS
    }
    elsewhere = {name for name, python in found.items() if python == Path("other/python")}
    assert elsewhere == {"WorkerRequest", "QuantiseRequest"}
    assert set(found.values()) == {Path("other/python"), None}


def test_the_temperature_is_that_of_the_iteration() -> None:
    listed = config(generation={"temperature": [0.8, 0.8, 1.3, 1.3]}).generation
    assert [listed.temperature_at(iteration) for iteration in (1, 2, 3)] == [0.8, 0.8, 1.3]
    assert config(generation={"temperature": 0.7}).generation.temperature_at(9) == 0.7


def test_every_section_is_read_by_a_stage() -> None:
    read = {name for kind in REQUESTS for name in kind.model_fields}
    sections = {
        name
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and not isinstance(field.annotation, types.GenericAlias)
        if issubclass(field.annotation, Section)
    }
    assert len(sections) == 14
    assert sections <= read
