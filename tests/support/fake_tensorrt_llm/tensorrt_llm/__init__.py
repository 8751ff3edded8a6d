"""A stand-in for TensorRT-LLM, as strict as the record of the real one (tests/contracts/tensorrt_llm_1_2.json).

It knows the calls, keywords and values that stand in that file and no others. Its model is a hash: the next token is a
function of the prompt, the tokens before and, where the sampler heeds it, the seed. `FAKE_TENSORRT_LLM` in the
environment names a JSON file: what is to go wrong; what was called is appended to the file `log` that it names.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

CONTRACT = json.loads((Path(__file__).parents[3] / "contracts" / "tensorrt_llm_1_2.json").read_text())


def faults() -> dict[str, Any]:
    path = os.environ.get("FAKE_TENSORRT_LLM")
    return json.loads(Path(path).read_text()) if path else {}


def log(event: str, **values: Any) -> None:
    if "log" in faults():
        with Path(faults()["log"]).open("a") as file:
            file.write(json.dumps({"event": event, **values}, default=vars) + "\n")


def bind(call: str, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call, defaults filled in.

    Raises:
        ValueError, TypeError: a keyword is unknown or missing, as the real ones do.
    """
    known = CONTRACT["calls"][call]
    for name in given:
        if name not in known:
            if call == "tensorrt_llm.LLM":
                raise ValueError(CONTRACT["refusals"]["unknown argument of LLM"].format(name=name))
            raise TypeError(f"{call} got an unexpected keyword argument '{name}'")
    missing = [name for name, default in known.items() if default == "required" and name not in given]
    if missing:
        raise TypeError(f"{call} lacks {missing}")
    return known | given


class SamplingParams:
    def __init__(self, **given: Any) -> None:
        self.__dict__ |= bind("tensorrt_llm.SamplingParams", given)
        assert self.end_id is not None
        assert self.stop is None or isinstance(self.stop, list)

    @property
    def greedy(self) -> bool:
        nothing = self.temperature is None and self.top_k is None and self.top_p is None
        return nothing or self.top_k == 1 or self.temperature == 0


class LLM:
    def __init__(self, **given: Any) -> None:
        self.given = bind("tensorrt_llm.LLM", given)
        assert self.given["sampler_type"] in CONTRACT["values"]["sampler_type"]
        assert self.given["kv_cache_config"].dtype in CONTRACT["values"]["kv_cache_dtype"]
        assert not self.given["trust_remote_code"]
        log("start", **given)
        if faults().get("start"):
            raise RuntimeError(faults()["start"])
        self._submitted = 0
        self._tokens = json.loads((Path(self.given["model"]) / "config.json").read_text())["vocab_size"]

    def generate_async(self, *inputs: Any, **given: Any) -> Any:
        from tensorrt_llm.llmapi import RequestOutput

        if inputs:
            given["inputs"] = inputs[0]
        bound = bind("tensorrt_llm.LLM.generate_async", given)
        prompt, parameters = bound["inputs"], bound["sampling_params"]
        if not (isinstance(prompt, list) and all(isinstance(token, int) for token in prompt)):
            raise TypeError(f"a prompt is a list of token ids, not {type(prompt).__name__}")
        if len(prompt) > self.given["max_input_len"]:
            raise ValueError(f"prompt of {len(prompt)} tokens, max_input_len {self.given['max_input_len']}")
        if self._submitted == faults().get("refuses after"):
            raise RuntimeError("the executor was shut down")
        self._submitted += 1
        log("submit", **vars(parameters))
        return RequestOutput(self, prompt, parameters, number=self._submitted)

    def shutdown(self) -> None:
        log("shutdown")
        if faults().get("shutdown"):
            raise RuntimeError(faults()["shutdown"])

    def draw(self, prompt: list[int], before: list[int], parameters: SamplingParams) -> int:
        heeds = self.given["sampler_type"] == "TRTLLMSampler" and not faults().get("ignores seeds")
        # A sampler that ignores the request's seed has one of its own.
        seed = None if parameters.greedy else parameters.seed if heeds else 42
        return hashlib.sha256(repr((prompt, before, seed)).encode()).digest()[0] % self._tokens
