"""What is encoded decodes to itself, and transformers reads the tokenizers as this package does."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irpo_megatron.artifacts import write_json
from irpo_megatron.base_model.tokenizers import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    SPECIAL_TOKENS,
    bpe_tokenizer,
    character_tokenizer,
    write_tokenizer,
)
from irpo_megatron.errors import UserError
from irpo_megatron.tasks.arithmetic import ALPHABET, PHRASES
from irpo_megatron.tokenizer import Tokenizer

TEXTS = ["Janet has 16 eggs and sells 9.", "Janet eats 3 eggs; the eggs cost $2 each."] * 4

characters = character_tokenizer(ALPHABET, PHRASES)
bpe = bpe_tokenizer(TEXTS, 285)

# A special token's name in a text is taken for the token, as in every tokenizer of Hugging Face.
any_text = st.text().filter(lambda text: not any(token in text for token in SPECIAL_TOKENS))
task_text = st.lists(st.sampled_from([*ALPHABET, *PHRASES])).map("".join)


@given(task_text)
def test_characters_decode_to_the_text(text: str) -> None:
    assert characters.decode(characters.encode(text).ids, skip_special_tokens=True) == text


@given(any_text)
def test_bpe_decodes_to_the_text(text: str) -> None:
    assert bpe.decode(bpe.encode(text).ids, skip_special_tokens=True) == text


def test_a_phrase_is_one_token() -> None:
    ids = characters.encode("3+4=?;Final answer:H", add_special_tokens=False).ids
    assert len(ids) == len("3+4=?;") + 1 + len("H")


def test_another_character_is_refused() -> None:
    with pytest.raises(Exception, match="WordLevel"):
        characters.encode("3 + 4")


@pytest.mark.parametrize("tokenizer", [characters, bpe], ids=["characters", "bpe"])
def test_special_tokens(tokenizer: object, tmp_path: Path) -> None:
    write_tokenizer(tokenizer, tmp_path, context=64)
    read = Tokenizer(tmp_path)
    assert list(enumerate(SPECIAL_TOKENS)) == [(PAD_ID, "<pad>"), (EOS_ID, "<eos>"), (BOS_ID, "<bos>")]
    assert read.encode_prompt("3+4:")[0] == BOS_ID
    assert read.encode_prompt("") == (BOS_ID,)
    completion = read.encode_completion("7;Final answer:H")
    assert BOS_ID not in completion
    assert completion[-1] == read.eos_id == EOS_ID
    assert read.decode(completion) == "7;Final answer:H"


def test_bpe_learns_and_every_id_is_in_use() -> None:
    assert bpe.get_vocab_size() == 285
    assert sorted(bpe.get_vocab().values()) == list(range(285))
    assert len(bpe.encode(" eggs", add_special_tokens=False).ids) == 1


def test_bpe_is_the_same_each_time() -> None:
    assert bpe_tokenizer(iter(TEXTS), 285).to_str() == bpe.to_str()
    assert bpe_tokenizer(["other words than those before"] * 9, 285).to_str() != bpe.to_str()


def test_few_texts_give_a_smaller_vocabulary() -> None:
    assert bpe_tokenizer(["ab"] * 5, 1000).get_vocab_size() == 256 + 3 + 1


def test_a_vocabulary_below_the_bytes_is_refused() -> None:
    with pytest.raises(UserError, match=r"tokenizer\.vocabulary = 258") as caught:
        bpe_tokenizer(TEXTS, 258)
    assert caught.value.remedy == "set it to 259 or more"


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [(characters, "3+4-2=?;Final answer:H"), (bpe, "Janet  sells eggs.\n\nétude , 's 🥚")],
    ids=["characters", "bpe"],
)
def test_transformers_agrees(tokenizer: object, text: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_tokenizer(tokenizer, tmp_path, context=64)
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), Tokenizer(tmp_path)
    ids = theirs(text).input_ids
    assert tuple(ids) == ours.encode_prompt(text)
    assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids) == text
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.bos_token_id) == (PAD_ID, EOS_ID, BOS_ID)
