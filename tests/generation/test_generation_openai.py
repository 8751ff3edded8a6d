"""The backend that asks a server, over a real socket, against the in-process backend that the server has behind it."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from support.completion_server import CompletionServer
from support.generation import make_request
from support.stages import run_sampling

from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.errors import UserError
from irpo_megatron.generation import http_requests, load_generator
from irpo_megatron.generation.protocol import Completion, Generator, SampleRequest, SamplingSettings
from irpo_megatron.records import Sample, read_rows

MakeRequests = Callable[..., list[SampleRequest]]

GREEDY = SamplingSettings(temperature=0.0, top_p=1.0, max_tokens=10)
SAMPLED = SamplingSettings(temperature=1.5, top_p=0.9, max_tokens=10)
TEXTS = ("a", "bc", "what is it", "zz", "fox", "dog", "the", "lazy")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(http_requests, "_FIRST_WAIT_SECONDS", 0.001)


def serving(folder: Path) -> Iterator[CompletionServer]:
    server = CompletionServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def server(model_folder: Path) -> Iterator[CompletionServer]:
    yield from serving(model_folder)


@pytest.fixture(scope="session")
def round_trip_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with a tokenizer whose text comes back: characters are joined by nothing."""
    folder = tmp_path_factory.mktemp("round-trip")
    for path in model_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"decoder": {"type": "Fuse"}}))
    return folder


@pytest.fixture
def text_server(round_trip_folder: Path) -> Iterator[CompletionServer]:
    yield from serving(round_trip_folder)


def settings(server: CompletionServer, **section: Any) -> GenerationConfig:
    openai = {"url": server.url, "concurrency": 4, "retries": 3, "extra": {"return_token_ids": True}} | section
    return GenerationConfig.model_validate({"backend": "openai", "openai": openai})


def complete(generator: Generator, requests: list[SampleRequest], how: SamplingSettings) -> list[Completion]:
    completions = dict(generator.generate(requests, how))
    assert sorted(completions) == list(range(len(requests)))
    return [completions[index] for index in range(len(requests))]


def ask(
    server: CompletionServer, requests: list[SampleRequest], how: SamplingSettings = SAMPLED, **section: Any
) -> Any:
    with closing(load_generator(settings(server, **section), server.folder)) as generator:
        return complete(generator, requests, how)


def refusal(server: CompletionServer, requests: list[SampleRequest], **section: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        ask(server, requests, **section)
    return caught.value


@pytest.mark.parametrize("how", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_completions_are_those_of_the_backend_behind_the_server(
    server: CompletionServer, make_requests: MakeRequests, how: SamplingSettings
) -> None:
    requests = make_requests(TEXTS, samples=3)
    assert ask(server, requests, how) == complete(server.generator, requests, how)
    assert 2 <= server.most_busy <= 4
    assert {body["model"] for body in server.bodies} == {str(server.folder)}
    assert all(("seed" in body) == (how is SAMPLED) for body in server.bodies)


def with_text_only(
    server: CompletionServer, make_requests: MakeRequests, how: SamplingSettings
) -> tuple[list[SampleRequest], list[Completion]]:
    """Requests whose samples hold no padding token, which has no text."""
    requests = make_requests(TEXTS, samples=6)
    completions = complete(server.generator, requests, how)
    kept = [(r, c) for r, c in zip(requests, completions, strict=True) if 0 not in c.ids]
    assert len(kept) > 12
    return [request for request, _ in kept], [completion for _, completion in kept]


def test_texts_alone_will_do_where_they_come_back(text_server: CompletionServer, make_requests: MakeRequests) -> None:
    requests, expected = with_text_only(text_server, make_requests, SAMPLED)
    assert ask(text_server, requests, extra={}) == expected
    assert {completion.finish_reason for completion in expected} == {"stop", "length"}


def test_texts_that_do_not_come_back_are_refused(server: CompletionServer, make_requests: MakeRequests) -> None:
    error = refusal(server, make_requests(TEXTS, samples=1), extra={})
    assert "gives no token ids, and its text" in error.seen
    assert "return_token_ids" in error.remedy


def test_stop_strings(text_server: CompletionServer, make_requests: MakeRequests) -> None:
    """With token ids, with the string in the text, and with the string left out but named."""
    requests, free = with_text_only(text_server, make_requests, SAMPLED)
    stops = tuple(completion.text[2:4] for completion in free if len(completion.ids) > 5)[:2]
    how = SamplingSettings(temperature=1.5, top_p=0.9, max_tokens=10, stop=stops)
    expected = complete(text_server.generator, requests, how)
    assert expected != free
    assert ask(text_server, requests, how) == ask(text_server, requests, how, extra={}) == expected

    def leave_out(body: Any, choice: Any, completion: Completion) -> None:
        found = [string for string in stops if completion.text.endswith(string)]
        if found and completion.finish_reason == "stop":
            choice["text"] = completion.text.removesuffix(found[0])
            choice["stop_reason"] = found[0]

    text_server.change = leave_out
    assert ask(text_server, requests, how) == ask(text_server, requests, how, extra={}) == expected

    def say_nothing(body: Any, choice: Any, completion: Completion) -> None:
        leave_out(body, choice, completion)
        del choice["stop_reason"]

    text_server.change = say_nothing
    with pytest.raises(UserError, match="neither stop string nor stop_reason"):
        ask(text_server, requests, how, extra={})


@pytest.mark.parametrize("faults", [[429], [500, 503], ["drop"], ["drop", 429, 502]])
def test_what_may_pass_is_asked_again(
    server: CompletionServer, make_requests: MakeRequests, faults: list[int | str]
) -> None:
    requests = make_requests(TEXTS, samples=1)
    server.faults = list(faults)
    assert ask(server, requests, concurrency=1) == complete(server.generator, requests, SAMPLED)
    assert len(server.bodies) == len(requests) + len(faults)


@pytest.mark.parametrize(
    ("faults", "seen", "asked"),
    [
        ([503] * 4, "answered with status 503", 4),
        (["drop"] * 4, "cannot be reached: RemoteProtocolError", 4),
        ([400], 'answered with status 400: \'{"error": "status 400 on purpose"}\'', 1),
        ([401], "answered with status 401", 1),
        (["no JSON"], "answered 'no JSON'", 1),
        (["[1]"], "answered '[1]'", 1),
        (["{}"], "answered '{}'", 1),
        (['{"choices": [1]}'], "answered", 1),
        (['{"choices": [{"text": null}]}'], "answered", 1),
        (['{"choices": [{"text": "", "token_ids": ["a"]}]}'], "answered", 1),
        (['{"choices": [{"text": "", "finish_reason": "content_filter", "token_ids": [2]}]}'], "content_filter", 1),
    ],
)
def test_what_does_not_pass_is_told(
    server: CompletionServer, make_requests: MakeRequests, faults: list[int | str], seen: str, asked: int
) -> None:
    server.faults = list(faults)
    assert seen in refusal(server, make_requests(TEXTS, samples=1), concurrency=1).seen
    assert len(server.bodies) == asked


def test_no_server(server: CompletionServer, model_folder: Path) -> None:
    with pytest.raises(UserError, match="cannot be reached: ConnectError"):
        load_generator(settings(server, url="http://127.0.0.1:9/v1"), model_folder)


def test_a_server_that_is_too_slow(server: CompletionServer, make_requests: MakeRequests) -> None:
    with server.model:
        error = refusal(server, make_requests(("a",), samples=1), timeout_seconds=0.2, retries=1)
    assert "cannot be reached: ReadTimeout" in error.seen


def test_a_path_that_is_no_interface(server: CompletionServer, model_folder: Path) -> None:
    with pytest.raises(UserError, match="answered with status 404"):
        load_generator(settings(server, url=server.url + "/more"), model_folder)


def test_a_server_of_another_model(server: CompletionServer, model_folder: Path) -> None:
    server.names = ["another", "third"]
    with pytest.raises(UserError, match=f"serves another, third, and {model_folder} is asked for"):
        load_generator(settings(server), model_folder)
    server.names = [f"mounted{model_folder}"]
    with closing(load_generator(settings(server, model="mounted{folder}"), model_folder)) as generator:
        assert generator.context == 128


def test_a_server_with_another_tokenizer(server: CompletionServer, make_requests: MakeRequests) -> None:
    server.change = lambda body, choice, completion: choice.update(text="something else")
    assert "gives the text 'something else', and its token ids are" in refusal(server, make_requests(TEXTS)).seen


def test_a_server_that_ignores_seeds(server: CompletionServer, make_requests: MakeRequests) -> None:
    server.seed = 5
    assert "said the same in all samples of each of 8 prompts" in refusal(server, make_requests(TEXTS, samples=2)).seen


def test_the_key_is_sent_and_stands_nowhere_else(
    server: CompletionServer,
    make_requests: MakeRequests,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    requests = make_requests(("a",), samples=1)
    ask(server, requests)
    assert server.keys == {None}
    monkeypatch.setenv("OPENAI_API_KEY", "of another service")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("IRPO_SERVER_API_KEY", "secret")
    with caplog.at_level(logging.INFO):
        ask(server, requests)
    assert server.keys == {None, "Bearer secret"}
    server.faults = [401]
    assert "secret" not in str(refusal(server, requests)) + caplog.text


def test_the_stage_asks_the_server(tmp_path: Path, problems: Path, digits_folder: Path) -> None:
    for server in serving(digits_folder):
        section = settings(server).openai
        run_sampling(make_request(tmp_path / "there", problems, digits_folder, backend="openai", openai=section))
    run_sampling(make_request(tmp_path / "here", problems, digits_folder))
    assert read_rows(tmp_path / "there", Sample) == read_rows(tmp_path / "here", Sample)
    assert "HTTP Request" not in (tmp_path / "there-worker-0.log").read_text()
