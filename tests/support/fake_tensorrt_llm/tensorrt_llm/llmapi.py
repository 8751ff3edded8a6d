"""The stand-in's `llmapi`."""

from __future__ import annotations

from typing import Any

from tensorrt_llm import CONTRACT, LLM, SamplingParams, bind, faults

# One character a token, as `support.tiny_model` has them; text is joined by spaces.
_CHARACTERS = ["", "", *"abcdefghijklmnopqrstuvwxyz "]


class KvCacheConfig:
    def __init__(self, **given: Any) -> None:
        self.__dict__ |= bind("tensorrt_llm.llmapi.KvCacheConfig", given)


class CudaGraphConfig:
    def __init__(self, **given: Any) -> None:
        self.__dict__ |= bind("tensorrt_llm.llmapi.CudaGraphConfig", given)


class CompletionOutput:
    def __init__(self, token_ids: list[int], finish_reason: str, stop_reason: int | str | None) -> None:
        assert finish_reason in CONTRACT["values"]["finish_reason"]
        self.token_ids = token_ids
        self.finish_reason = finish_reason
        self.stop_reason = stop_reason
        assert set(vars(self)) == set(CONTRACT["attributes"]["tensorrt_llm.llmapi.CompletionOutput"])


class RequestOutput:
    """A future; the sample is drawn when it is asked for."""

    def __init__(self, llm: LLM, prompt: list[int], parameters: SamplingParams, *, number: int) -> None:
        self._llm = llm
        self._prompt = prompt
        self._parameters = parameters
        self._number = number
        self.outputs: list[CompletionOutput] = []

    def result(self, **given: Any) -> RequestOutput:
        bind("tensorrt_llm.llmapi.RequestOutput.result", given)
        if self._number == faults().get("dies at"):
            raise RuntimeError(faults().get("last words", "the executor's worker process is gone"))
        self.outputs = [self._draw()]
        return self

    def _draw(self) -> CompletionOutput:
        parameters, ids = self._parameters, list[int]()
        if self._number == faults().get("ends at"):
            return CompletionOutput([5, 6], faults()["finish_reason"], None)
        while len(ids) < parameters.max_tokens:
            ids.append(self._llm.draw(self._prompt, ids, parameters))
            if ids[-1] == parameters.end_id:
                return CompletionOutput(ids[:-1] if faults().get("drops ends") else ids, "stop", None)
            if ids[-1] in (parameters.stop_token_ids or ()):
                return CompletionOutput(self._kept(ids, 1), "stop", ids[-1])
            # Stop strings are looked for as token ids, and only in the one way that the tokenizer writes them.
            for string in parameters.stop or ():
                if not faults().get("overlooks stops") and _ends_with(ids, string):
                    return CompletionOutput(self._kept(ids, len(string[::2])), "stop", string)
        return CompletionOutput(ids, "length", None)

    def _kept(self, ids: list[int], stop_tokens: int) -> list[int]:
        return ids if self._parameters.include_stop_str_in_output else ids[:-stop_tokens]


def _ends_with(ids: list[int], string: str) -> bool:
    tokens = [_CHARACTERS.index(character) for character in string[::2]]
    return ids[-len(tokens) :] == tokens
