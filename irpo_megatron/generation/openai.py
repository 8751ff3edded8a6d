"""Sampling through a server with OpenAI's HTTP interface: vLLM, SGLang, trtllm-serve.

The server has to serve the very model folder that is asked for, under a name with that folder's path: a fixed name
would go on meaning the model of an earlier iteration. As with any such engine, a token near a boundary may depend on
what else the server computes at the time.

Token ids are the server's where it gives them. Otherwise the text is encoded here, and refused unless it comes back.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path

from irpo_megatron.artifacts import Json, read_json
from irpo_megatron.config_generation import GenerationConfig, OpenAIConfig
from irpo_megatron.errors import UserError
from irpo_megatron.generation.context import check_context
from irpo_megatron.generation.ending import Ending
from irpo_megatron.generation.http_requests import Connection, malformed
from irpo_megatron.generation.protocol import Completion, SampleRequest, SamplingSettings
from irpo_megatron.generation.seed_check import refuse_ignored_seeds
from irpo_megatron.tokenizer import Tokenizer

_ENGINE = "the server"

# A name of its own: a configuration from elsewhere, with an address from elsewhere, must not be sent a key that is in
# the environment for another service. It is never written anywhere.
API_KEY = "IRPO_SERVER_API_KEY"


class OpenAIGenerator:
    """The `openai` backend of the protocol `Generator`."""

    def __init__(self, model_folder: Path, settings: GenerationConfig) -> None:
        """Connect to the server, and find the model there.

        Raises:
            UserError: the folder has no usable tokenizer, the server cannot be reached, or serves another model.
        """
        assert settings.openai is not None, "config_rules demands the section"
        self._settings = settings.openai
        self._tokenizer = Tokenizer(model_folder)
        self._context = read_json(model_folder / "config.json").get("max_position_embeddings")
        self._model = self._settings.model.replace("{folder}", str(model_folder.absolute()))
        # Otherwise a line in the log for each sample.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._connection = Connection(self._settings, os.environ.get(API_KEY))
        try:
            self._check_model()
        except BaseException:
            self.close()
            raise

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens, as the model's config.json says."""
        return self._context

    def _check_model(self) -> None:
        listed = self._connection.get("models")
        names = [str(entry.get("id")) for entry in _entries(listed, "data")]
        if self._model not in names:
            raise UserError(
                f"{self._settings.url} serves {', '.join(names) or 'nothing'}, and {self._model} is asked for",
                "the server serves the model folder that is to be sampled from, under a name with the folder's path",
                f"start it with {self._model} as its model, then the same command goes on; or set "
                "generation.openai.model to how it names folders",
            )

    def generate(
        self, requests: Iterable[SampleRequest], settings: SamplingSettings
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (position in `requests`, completion) as the server answers.

        Raises:
            UserError: a prompt leaves less room than `max_tokens`; the server fails or refuses a request for good,
                answers what cannot be read, or ignores seeds.
        """
        yield from refuse_ignored_seeds(self._sample, requests, settings, engine=_ENGINE)

    def _sample(
        self, requests: Iterable[SampleRequest], settings: SamplingSettings
    ) -> Iterator[tuple[int, Completion]]:
        """One request a sample, a bounded number of them at once."""
        reader = _Reader(self._settings, self._tokenizer, settings)
        waiting = enumerate(requests)
        asked: dict[Future[Json], int] = {}
        with ThreadPoolExecutor(self._settings.concurrency) as threads:
            try:
                while True:
                    for position, request in islice(waiting, self._settings.concurrency - len(asked)):
                        check_context([request.prompt_ids], settings.max_tokens, self.context)
                        body = _body(request, settings, model=self._model, extra=self._settings.extra)
                        asked[threads.submit(self._connection.post, "completions", body)] = position
                    if not asked:
                        return
                    answered, _ = wait(asked, return_when=FIRST_COMPLETED)
                    for future in answered:
                        yield asked.pop(future), reader.completion(future.result())
            finally:
                threads.shutdown(wait=False, cancel_futures=True)
                if asked:  # an error, or nobody asks any more: what is on its way is not tried again
                    self._connection.close()

    def close(self) -> None:
        """Close the connections; the server goes on."""
        self._connection.close()


def _body(request: SampleRequest, settings: SamplingSettings, *, model: str, extra: Json) -> Json:
    body: Json = {
        **extra,
        "model": model,
        "prompt": list(request.prompt_ids),
        "n": 1,
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "stream": False,
    }
    if settings.temperature > 0:
        body["seed"] = request.seed  # 63 bits: servers take a signed number of 64
    if settings.stop:
        body["stop"] = list(settings.stop)
    return body


class _Reader:
    """Reads the server's answers."""

    def __init__(self, server: OpenAIConfig, tokenizer: Tokenizer, settings: SamplingSettings) -> None:
        self._url = server.url
        self._tokenizer = tokenizer
        self._stop = settings.stop
        self._ending = Ending(f"{_ENGINE} at {server.url}", tokenizer, settings)

    def completion(self, answer: Json) -> Completion:
        """The completion in an answer.

        Raises:
            UserError: there is none, it ended in no known way, or its text and tokens are not those of this tokenizer.
        """
        choices = _entries(answer, "choices")
        if len(choices) != 1 or not isinstance(choices[0].get("text"), str):
            raise malformed(self._url, str(answer))
        choice = choices[0]
        text, ids = choice["text"], choice.get("token_ids")
        if ids is None:
            ids = self._encoded(self._with_stop_string(choice))
        elif not (isinstance(ids, list) and all(type(token) is int and token >= 0 for token in ids)):
            raise malformed(self._url, str(answer))
        completion = self._ending.complete(ids, choice.get("finish_reason"), choice.get("stop_reason"))
        # Servers leave blanks out at the ends, and stop strings.
        if not completion.text.strip().startswith(text.strip()):
            raise UserError(
                f"{self._url} gives the text {text[:60]!r}, and its token ids are {completion.text[:60]!r} here",
                "the server has the tokenizer of the model folder",
                "start it on the folder itself",
            )
        return completion

    def _with_stop_string(self, choice: Json) -> str:
        """The text, with the stop string that the server left out."""
        text: str = choice["text"]
        if not self._stop or choice.get("finish_reason") != "stop" or any(string in text for string in self._stop):
            return text
        reason = choice.get("stop_reason", "unknown")
        if reason == "unknown":
            raise UserError(
                f"{self._url} ended a text with finish_reason = 'stop' and neither stop string nor stop_reason",
                "whether an end token or a stop string ended a sample has to be known: both are part of it",
                "let the server return token ids, or keep stop strings in the text (vLLM: 'generation.openai.extra="
                "{return_token_ids: true}')",
            )
        return text + reason if isinstance(reason, str) else text

    def _encoded(self, text: str) -> list[int]:
        """The token ids of a text, which need not be those that were sampled."""
        ids = self._tokenizer.encode_text(text)
        if self._tokenizer.decode(ids) != text:
            raise UserError(
                f"{self._url} gives no token ids, and its text {text[:60]!r} comes back from the tokenizer as "
                f"{self._tokenizer.decode(ids)[:60]!r}",
                "training needs the tokens of a sample: the server's, or those of a text that survives the tokenizer",
                "let the server return token ids (vLLM: 'generation.openai.extra={return_token_ids: true}'; "
                "trtllm-serve: '{detokenize: false}')",
            )
        return list(ids)


def _entries(answer: Json, key: str) -> list[Json]:
    """The mappings in a list of the answer; none where it has no such list."""
    found = answer.get(key)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
