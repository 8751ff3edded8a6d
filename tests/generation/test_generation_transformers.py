"""The decoding loop, against a loop that knows neither batches, padding nor caches."""

from __future__ import annotations

import gc
import json
import math
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from support.tiny_model import CHARACTERS, make_llama, make_model
from torch import Tensor

from irpo_megatron.config_generation import GenerationConfig, TransformersConfig
from irpo_megatron.errors import UserError
from irpo_megatron.generation import load_generator
from irpo_megatron.generation.decoding.layers import Layers
from irpo_megatron.generation.decoding.sampling import EXACT, ErrorBounds, error_unit
from irpo_megatron.generation.protocol import Completion, SampleRequest, SamplingSettings
from irpo_megatron.generation.transformers import TransformersGenerator
from irpo_megatron.tokenizer import Tokenizer

MakeRequests = Callable[..., list[SampleRequest]]

GREEDY = SamplingSettings(temperature=0.0, top_p=1.0, max_tokens=24)
SAMPLED = SamplingSettings(temperature=1.5, top_p=1.0, max_tokens=24)
NUCLEUS = SamplingSettings(temperature=1.5, top_p=0.8, max_tokens=24)
ALL_SETTINGS = pytest.mark.parametrize("settings", [GREEDY, SAMPLED, NUCLEUS], ids=["greedy", "sampled", "nucleus"])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def load(folder: Path, *, batch_size: int = 64) -> TransformersGenerator:
    return TransformersGenerator(folder, batch_size=batch_size, settings=TransformersConfig())


def complete(
    generator: TransformersGenerator, requests: list[SampleRequest], settings: SamplingSettings
) -> list[Completion]:
    """The completions in the order of the requests."""
    completions = dict(generator.generate(requests, settings))
    assert sorted(completions) == list(range(len(requests)))
    return [completions[index] for index in range(len(requests))]


def splitmix64(seed: int, position: int) -> float:
    state = (seed + (position + 1) * 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return ((state ^ (state >> 31)) >> 11) * 2.0**-53


def choose_slowly(logits: list[float], u: float, settings: SamplingSettings) -> int:
    if settings.temperature == 0:
        return logits.index(max(logits))
    weights = [math.exp(logit / settings.temperature) for logit in logits]
    total, taken = sum(weights), set[int]()
    for token in sorted(range(len(weights)), key=lambda token: (-weights[token], token)):
        if sum(weights[token] for token in taken) < settings.top_p * total:
            taken.add(token)
    target = u * sum(weights[token] for token in taken)
    for token in sorted(taken):
        target -= weights[token]
        if target < 0:
            return token
    raise AssertionError("u is below 1")


def complete_slowly(
    generator: TransformersGenerator, request: SampleRequest, settings: SamplingSettings, eos_ids: tuple[int, ...]
) -> tuple[int, ...]:
    """One sample at a time, the whole sequence anew for each token."""
    ids: list[int] = []
    while len(ids) < settings.max_tokens and not (ids and ids[-1] in eos_ids):
        with torch.no_grad():
            logits = generator.model(torch.tensor([[*request.prompt_ids, *ids]])).logits[0, -1].tolist()
        ids.append(choose_slowly(logits, splitmix64(request.seed, len(ids)), settings))
    return tuple(ids)


class ForwardLog:
    """What the model is asked to compute: [prompts, tokens] of each pass over prompts, and the rows of each step."""

    def __init__(self, generator: TransformersGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prefills: list[tuple[int, ...]] = []
        self.steps: list[int] = []
        generator.model.base_model.register_forward_pre_hook(self._note, with_kwargs=True)
        logits = Layers.logits

        def noting(layers: Layers, tokens: Tensor, positions: Tensor, step: Any) -> Tensor:
            self.steps.append(len(tokens))
            return logits(layers, tokens, positions, step)

        monkeypatch.setattr(Layers, "logits", noting)

    def _note(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if "store" in kwargs:
            self.prefills.append(tuple(kwargs["input_ids"].shape))


@ALL_SETTINGS
def test_batched_decoding_equals_one_sample_at_a_time(
    model_folder: Path, make_requests: MakeRequests, settings: SamplingSettings
) -> None:
    generator = load(model_folder)
    eos_ids = Tokenizer(model_folder).eos_ids
    requests = make_requests(samples=3)
    completions = complete(generator, requests, settings)
    assert [c.ids for c in completions] == [complete_slowly(generator, r, settings, eos_ids) for r in requests]
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for completion in completions:
        assert (completion.finish_reason == "stop") == (completion.ids[-1] in eos_ids)
        assert completion.text == Tokenizer(model_folder).decode(completion.ids)


@ALL_SETTINGS
@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_batch_size_changes_nothing(
    model_folder: Path, make_requests: MakeRequests, settings: SamplingSettings, batch_size: int
) -> None:
    requests = make_requests()
    expected = complete(load(model_folder), requests, settings)
    assert complete(load(model_folder, batch_size=batch_size), requests, settings) == expected


def test_the_order_of_the_requests_changes_nothing(model_folder: Path, make_requests: MakeRequests) -> None:
    requests = make_requests()
    generator = load(model_folder, batch_size=8)
    expected = complete(generator, requests, SAMPLED)
    assert complete(generator, requests[::-1], SAMPLED) == expected[::-1]


@ALL_SETTINGS
def test_float_errors_of_a_batch_change_nothing(
    model_folder: Path, make_requests: MakeRequests, settings: SamplingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors of up to 2 % of the largest logit, far more than any real ones, in all logits but the exact ones."""
    requests = make_requests()
    expected = complete(load(model_folder), requests, settings)

    generator = load(model_folder)
    noise = torch.Generator().manual_seed(0)
    logits = Layers.logits
    bounds = ErrorBounds(0.02 * 2**23, 0.02 * 2**23)
    steps = 0

    def disturbed(layers: Layers, tokens: Tensor, positions: Tensor, step: Any) -> Tensor:
        nonlocal steps
        steps += 1
        right = logits(layers, tokens, positions, step)
        bound = error_unit(right)[:, None] * bounds.largest * 0.9
        return right + (bound * (torch.rand(right.shape, generator=noise) * 2 - 1)).float()

    monkeypatch.setattr(Layers, "logits", disturbed)
    monkeypatch.setattr(generator._engine.exact, "bounds", lambda temperature: bounds)
    assert complete(generator, requests, settings) == expected
    assert steps > 20

    monkeypatch.setattr(generator._engine.exact, "bounds", lambda temperature: EXACT)
    assert complete(generator, requests, settings) != expected


def test_a_seed_decides_a_sample(model_folder: Path, make_requests: MakeRequests) -> None:
    prompt_ids = make_requests(("what is it",), samples=1)[0].prompt_ids
    requests = [SampleRequest(prompt_ids=prompt_ids, seed=seed) for seed in (1, 2, 1, 2**63 - 1)]
    first, second, again, last = complete(load(model_folder), requests, SAMPLED)
    assert first == again
    assert len({first.ids, second.ids, last.ids}) == 3


def test_a_prompt_is_computed_once_for_all_its_samples(
    model_folder: Path, make_requests: MakeRequests, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = load(model_folder, batch_size=20)
    log = ForwardLog(generator, monkeypatch)
    complete(generator, make_requests(("what is it", "a", "zz", "the", "of"), samples=10), SAMPLED)
    # All tokens but the last, which is each sample's first step: "a" has no other.
    assert log.prefills[0] == (1, 9)
    assert sum(prompts for prompts, _ in log.prefills) == 4
    assert {tokens for _, tokens in log.prefills[1:]} <= {1, 2}


def test_a_finished_sample_makes_room_at_once(
    model_folder: Path, make_requests: MakeRequests, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = load(model_folder, batch_size=8)
    log = ForwardLog(generator, monkeypatch)
    completions = complete(generator, make_requests(), SAMPLED)
    # Every step gives one token to each row, and some are taken back: the rows are full until no sample is waiting.
    tokens = sum(len(completion.ids) for completion in completions)
    assert tokens <= sum(log.steps) < 1.01 * tokens
    last_full = max(step for step, rows in enumerate(log.steps) if rows == 8)
    assert set(log.steps[:last_full]) == {8}
    assert len(log.steps) - last_full <= SAMPLED.max_tokens


def test_requests_are_pulled_as_there_is_room(model_folder: Path, make_requests: MakeRequests) -> None:
    pulled = 0

    def pull() -> Iterator[SampleRequest]:
        nonlocal pulled
        for request in make_requests():
            pulled += 1
            yield request

    completions = load(model_folder, batch_size=4).generate(pull(), SAMPLED)
    for done in range(1, 30):
        next(completions)
        assert pulled <= done + 4


@pytest.mark.parametrize(("mib", "rows"), [(2, 2), (4, 4)])
def test_keys_and_values_stay_within_their_memory(
    tmp_path: Path, make_requests: MakeRequests, monkeypatch: pytest.MonkeyPatch, mib: int, rows: int
) -> None:
    folder = make_llama(tmp_path / "wide", num_hidden_layers=8, num_key_value_heads=4, head_dim=64)
    settings = SamplingSettings(temperature=1.5, top_p=1.0, max_tokens=40)
    generator = TransformersGenerator(folder, batch_size=64, settings=TransformersConfig(kv_cache_mib=mib))
    log = ForwardLog(generator, monkeypatch)
    requests = make_requests()
    narrow = complete(generator, requests, settings)
    # A page is 8 layers x 4 heads x 32 tokens x (key + value) x 64 x 4 bytes, which is 512 KiB. A sample needs two, and
    # its prompt one, or none where that is a single token.
    assert max(log.steps) == rows
    assert narrow == complete(load(folder), requests, settings)


def test_a_sample_that_does_not_fit_the_memory_is_refused(tmp_path: Path, make_requests: MakeRequests) -> None:
    folder = make_llama(tmp_path / "wide", num_hidden_layers=8, num_key_value_heads=4, head_dim=64)
    generator = TransformersGenerator(folder, batch_size=64, settings=TransformersConfig(kv_cache_mib=1))
    settings = SamplingSettings(temperature=1.5, top_p=1.0, max_tokens=64)
    with pytest.raises(UserError, match=r"prompt of 10 tokens needs 2 MiB.*kv_cache_mib = 1\n.*\n.*to 2 or more"):
        next(generator.generate(make_requests(("what is it",)), settings))


def test_any_end_token_ends_a_completion(model_folder: Path, make_requests: MakeRequests) -> None:
    completions = complete(load(model_folder), make_requests(samples=20), SAMPLED)
    last = [completion.ids[-1] for completion in completions if completion.finish_reason == "stop"]
    eos_ids = Tokenizer(model_folder).eos_ids
    assert set(last) == set(eos_ids)
    assert len(eos_ids) == 2
    assert all(not set(completion.ids[:-1]) & set(eos_ids) for completion in completions)


def test_max_tokens_ends_a_completion(model_folder: Path, make_requests: MakeRequests) -> None:
    longer = complete(load(model_folder), make_requests(), SAMPLED)
    shorter = complete(load(model_folder), make_requests(), SamplingSettings(temperature=1.5, top_p=1.0, max_tokens=5))
    for long, short in zip(longer, shorter, strict=True):
        assert short.ids == long.ids[:5]
        assert short.finish_reason == ("stop" if long.finish_reason == "stop" and len(long.ids) <= 5 else "length")


def test_an_end_token_in_the_last_place_is_a_stop(model_folder: Path, make_requests: MakeRequests) -> None:
    requests = make_requests()
    whole = complete(load(model_folder), requests, SAMPLED)
    request, expected = next(
        (r, c) for r, c in zip(requests, whole, strict=True) if c.finish_reason == "stop" and len(c.ids) > 1
    )
    exact = SamplingSettings(temperature=1.5, top_p=1.0, max_tokens=len(expected.ids))
    assert complete(load(model_folder), [request], exact) == [expected]


@pytest.mark.parametrize("batch_size", [3, 64])
def test_a_stop_string_ends_a_completion_and_stays_in_it(
    model_folder: Path, make_requests: MakeRequests, batch_size: int
) -> None:
    requests = make_requests()
    free = complete(load(model_folder), requests, SAMPLED)
    tokenizer = Tokenizer(model_folder)
    # The tokenizer joins its characters by spaces: "x y".
    middles = [middle for middle in (completion.text[6:9] for completion in free) if middle[::2].isalpha()]
    stop = tuple(middles[:2])
    stopping = SamplingSettings(temperature=1.5, top_p=1.0, max_tokens=24, stop=stop)
    stopped = complete(load(model_folder, batch_size=batch_size), requests, stopping)
    cut = 0
    for before, after in zip(free, stopped, strict=True):
        length = next(
            (n for n in range(1, len(before.ids)) if any(s in tokenizer.decode(before.ids[:n]) for s in stop)),
            len(before.ids),
        )
        assert after.ids == before.ids[:length]
        assert after.text == tokenizer.decode(after.ids)
        if length < len(before.ids):
            cut += 1
            assert after.finish_reason == "stop"
            assert after.text.endswith(stop)
    assert cut > 1


def test_a_prompt_without_room_is_refused(model_folder: Path, make_requests: MakeRequests) -> None:
    requests = make_requests(("a" * 100, "b"), samples=1)
    generator = load(model_folder)
    assert generator.context == 128
    fits = SamplingSettings(temperature=1.5, top_p=1.0, max_tokens=28)
    assert len(complete(generator, requests, fits)) == 2
    with pytest.raises(UserError, match=r"longest prompt has 100 tokens.*\n.*128 tokens\n.*at most 28"):
        next(generator.generate(requests, SamplingSettings(temperature=1.5, top_p=1.0, max_tokens=29)))
    with pytest.raises(UserError, match="a longer context"):
        next(generator.generate(make_requests(("a" * 128,), samples=1), fits))
    with pytest.raises(UserError, match="no tokens"):
        next(generator.generate([SampleRequest(prompt_ids=(), seed=1)], fits))
    assert list(generator.generate([], fits)) == []


@ALL_SETTINGS
def test_a_diverged_model_is_refused(
    model_folder: Path, make_requests: MakeRequests, settings: SamplingSettings
) -> None:
    generator = load(model_folder)
    with torch.no_grad():
        generator.model.lm_head.weight[3, 3] = math.nan
    with pytest.raises(UserError, match="not finite after"):
        next(generator.generate(make_requests(), settings))


def test_a_bfloat16_checkpoint_computes_in_float32(model_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = make_llama(tmp_path / "bf16", num_hidden_layers=1)
    AutoModelForCausalLM.from_pretrained(folder).to(torch.bfloat16).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    model = load(folder).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


def test_a_model_with_tied_embeddings_is_complete(tmp_path: Path, make_requests: MakeRequests) -> None:
    folder = make_llama(tmp_path / "tied", num_hidden_layers=1, tie_word_embeddings=True)
    assert len(complete(load(folder), make_requests(("a",), samples=2), SAMPLED)) == 2


def test_missing_weights_are_refused(model_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "partial")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"lacks 9 weights, for example model\.layers\.2"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", None),
        ("config.json", b'{"model_type": "no-such-model"}'),
        ("config.json", b"{"),
        ("model.safetensors", None),
        ("model.safetensors", b"no tensors"),
    ],
)
def test_an_unusable_model_is_refused(model_folder: Path, tmp_path: Path, name: str, content: bytes | None) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "broken")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match="restore"):
        load(folder)


def test_code_in_the_model_folder_is_never_run(model_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "code")
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="without code from that folder"):
        load(folder)
    assert not ran.exists()


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        load(tmp_path)


def test_load_generator_takes_the_configured_backend(
    model_folder: Path, make_requests: MakeRequests, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = load_generator(GenerationConfig(batch_size=2), model_folder)
    assert isinstance(generator, TransformersGenerator)
    log = ForwardLog(generator, monkeypatch)
    complete(generator, make_requests(("a", "b"), samples=2), GREEDY)
    assert max(log.steps) == 2


def test_the_vocabulary_of_the_tests_is_that_of_the_model(model_folder: Path) -> None:
    assert Tokenizer(model_folder).vocabulary_size == 2 + len(CHARACTERS)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_tokens_follow_the_exact_probabilities(
    model_folder: Path, make_requests: MakeRequests, dtype: Literal["fp32", "bf16"]
) -> None:
    """Chi-square of the first tokens of 6,000 samples, and of the second ones after the most frequent first."""
    generator = TransformersGenerator(model_folder, batch_size=512, settings=TransformersConfig(dtype=dtype))
    settings = SamplingSettings(temperature=1.5, top_p=1.0, max_tokens=2)
    completions = complete(generator, make_requests(("the fox",), samples=6000), settings)
    prompt_ids = make_requests(("the fox",), samples=1)[0].prompt_ids
    firsts = [completion.ids[0] for completion in completions]
    favourite = max(
        set(firsts).difference(Tokenizer(model_folder).eos_ids), key=lambda token: (firsts.count(token), token)
    )
    seconds = [completion.ids[1] for completion in completions if completion.ids[0] == favourite]
    assert len(seconds) > 300
    for sequence, drawn in ((prompt_ids, firsts), ((*prompt_ids, favourite), seconds)):
        with torch.no_grad():
            logits = generator.model(torch.tensor([sequence])).logits[0, -1].double()
        statistic, classes = chi_square(drawn, (logits / 1.5).softmax(dim=-1).tolist())
        # The 0.9999 quantile of chi-square, by Wilson and Hilferty's approximation.
        freedom = classes - 1
        assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3


def chi_square(drawn: list[int], probabilities: list[float]) -> tuple[float, int]:
    """The statistic and the number of classes; tokens that few draws are expected of make one class together."""
    expected = [len(drawn) * probability for probability in probabilities]
    rare = [token for token, count in enumerate(expected) if count < 8]
    groups = [[token] for token in range(len(expected)) if token not in rare] + ([rare] if rare else [])
    pairs = [(sum(map(drawn.count, group)), sum(expected[token] for token in group)) for group in groups]
    return sum((seen - count) ** 2 / count for seen, count in pairs), len(groups)


def test_in_bf16_a_model_takes_half_the_memory_and_the_prompt_decides(
    model_folder: Path, make_requests: MakeRequests
) -> None:
    generator = TransformersGenerator(model_folder, batch_size=8, settings=TransformersConfig(dtype="bf16"))
    assert {parameter.dtype for parameter in generator.model.parameters()} == {torch.bfloat16}
    requests = make_requests(samples=2)
    completions = complete(generator, requests, SAMPLED)
    assert completions == complete(generator, requests, SAMPLED)


def test_a_sliding_window_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "mistral", "mistral", sliding_window=64)
    with pytest.raises(UserError, match=r"sliding_window = 64\n.*128\n.*max_position_embeddings to 64"):
        load(folder)


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = make_llama(tmp_path / "gpt2", num_hidden_layers=1)
    (folder / "model.safetensors").unlink()
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=29)).save_pretrained(folder)
    with pytest.raises(UserError, match=r"model_type = 'gpt2'\n.*llama, mistral, qwen2, qwen3"):
        load(folder)


def test_a_model_that_nobody_holds_leaves_the_memory(digits_folder: Path) -> None:
    """A worker that tries candidate after candidate has one of them at a time."""
    first = load(digits_folder)
    model = weakref.ref(first.model)
    first.close()
    del first
    second = load(digits_folder)
    gc.collect()
    assert model() is None
    second.close()
