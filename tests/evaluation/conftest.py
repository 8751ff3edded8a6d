"""A model that says what it is told to: the engine is replaced, everything around it is real."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from irpo_megatron.base_model.random_llama import write_random_llama
from irpo_megatron.base_model.tokenizers import character_tokenizer, write_tokenizer
from irpo_megatron.config import RandomModel, RandomTokenizer
from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.generation import Completion, SampleRequest, SamplingSettings
from irpo_megatron.records import Problem, write_rows
from irpo_megatron.tasks.arithmetic import ALPHABET, PHRASES
from irpo_megatron.tokenizer import Tokenizer


@dataclass
class Script:
    """What each model folder says: name of the folder -> prompt -> its answers, in turn by sample index."""

    lines: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    loaded: list[str] = field(default_factory=list)
    """Names of the folders that were loaded, in order."""
    closed: int = 0
    """Engines that were closed."""
    asked: list[tuple[SamplingSettings, list[SampleRequest]]] = field(default_factory=list)
    fail_after: int | None = None
    """Completions until the engine dies; None never."""


class ScriptedGenerator:
    """An engine of the protocol `Generator`; an answer that ends in `...` is cut off."""

    context = 128

    def __init__(self, script: Script, folder: Path) -> None:
        self._script = script
        self._lines = script.lines[folder.name]
        self._tokenizer = Tokenizer(folder)

    def generate(
        self, requests: Iterable[SampleRequest], settings: SamplingSettings
    ) -> Iterator[tuple[int, Completion]]:
        asked: list[SampleRequest] = []
        self._script.asked.append((settings, asked))
        seen: dict[tuple[int, ...], int] = {}
        for position, request in enumerate(requests):
            asked.append(request)
            if self._script.fail_after is not None:
                self._script.fail_after -= 1
                if self._script.fail_after < 0:
                    raise RuntimeError("killed")
            index = seen.get(request.prompt_ids, 0)
            seen[request.prompt_ids] = index + 1
            answers = self._lines[self._tokenizer.decode(request.prompt_ids)]
            text = answers[index % len(answers)]
            ids = self._tokenizer.encode_completion(text.removesuffix("..."))
            if text.endswith("..."):
                yield position, Completion(ids=ids[:-1], text=text.removesuffix("..."), finish_reason="length")
            else:
                yield position, Completion(ids=ids, text=text, finish_reason="stop")

    def close(self) -> None:
        self._script.closed += 1


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """The script by which evaluation and judging find their models speaking."""
    script = Script()

    def load(settings: GenerationConfig, folder: Path) -> ScriptedGenerator:
        script.loaded.append(folder.name)
        return ScriptedGenerator(script, folder)

    monkeypatch.setattr("irpo_megatron.generation.worker.load_generator", load)
    return script


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real random Llama with the characters of chain arithmetic."""
    folder = tmp_path_factory.mktemp("models") / "random"
    folder.mkdir()
    tokenizer = character_tokenizer(ALPHABET, PHRASES)
    write_tokenizer(tokenizer, folder, context=128)
    shape = RandomModel(tokenizer=RandomTokenizer(kind="characters"), hidden_size=16, layers=1, context=128)
    write_random_llama(folder, shape, vocabulary=tokenizer.get_vocab_size(), seed=0)
    return folder


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    """Five problems to test on, whose answers are H, and two held-out ones."""
    folder = tmp_path / "problems"
    folder.mkdir()
    for split, count in (("test", 5), ("held_out", 2)):
        rows = [Problem(id=f"{split}-{index:06d}", question=f"{index}+5", answer="H") for index in range(count)]
        write_rows(folder / f"{split}.parquet", rows, Problem)
    return folder
