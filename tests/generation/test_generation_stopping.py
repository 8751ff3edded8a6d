"""Stop strings in the tail of a completion."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers

from irpo_megatron.generation.stopping import StopStrings
from irpo_megatron.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Byte-level, one token a byte: a character may need several tokens."""
    folder = tmp_path_factory.mktemp("bytes")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = FastTokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"eos_token_id": 0}')
    return Tokenizer(folder)


@pytest.mark.parametrize("stop", [("Question:",), ("\n\n",), ("ä€😀",), ("zz", "on: w")])
def test_the_tail_finds_what_the_whole_text_holds(tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
    ids = tokenizer.encode_prompt("So 2 + 2 = 4.\n\nüä€😀 Question: what")
    strings = StopStrings(stop, tokenizer)
    whole = [any(string in tokenizer.decode(ids[:end]) for string in stop) for end in range(1, len(ids) + 1)]
    first = whole.index(True) + 1
    assert not any(strings.complete(ids[max(0, end - strings.tail) : end]) for end in range(1, first))
    assert strings.complete(ids[max(0, first - strings.tail) : first])


def test_no_stop_strings_are_false(tokenizer: Tokenizer) -> None:
    assert not StopStrings((), tokenizer)
    assert StopStrings(("a",), tokenizer)
