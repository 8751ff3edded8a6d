"""Prompts get what the tokenizer puts in front, completions get an end token, and every folder can end a completion."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_model import CHARACTERS, make_tokenizer
from tokenizers import AddedToken, models, normalizers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.processors import TemplateProcessing

from irpo_megatron.errors import UserError
from irpo_megatron.tokenizer import Tokenizer

# `make_tokenizer` numbers <pad> 0, <eos> 1, then the letters from a = 2 on.
EOS = 1


def ids(text: str) -> tuple[int, ...]:
    return tuple(CHARACTERS.index(character) + 2 for character in text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tokenizer(tmp_path)
    return tmp_path


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def change(folder: Path, how: Callable[[FastTokenizer], object]) -> None:
    fast = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    how(fast)
    fast.save(str(folder / "tokenizer.json"))


def add_bos(fast: FastTokenizer) -> None:
    fast.add_special_tokens(["<bos>"])
    fast.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 29)])


# Text to ids and back


def test_prompt_and_completion(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    assert tokenizer.encode_prompt("ab z") == (2, 3, 28, 27)
    assert tokenizer.encode_completion("ba") == (3, 2, EOS)
    assert tokenizer.encode_completion("") == (EOS,)
    assert tokenizer.decode((2, 3, 28, 27)).replace(" ", "") == "abz"
    assert tokenizer.vocabulary_size == 29


@given(st.text(CHARACTERS, max_size=30))
def test_a_completion_is_its_text_and_an_end(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "letters"
    if not folder.exists():
        folder.mkdir()
        make_tokenizer(folder)
    tokenizer = Tokenizer(folder)
    assert tokenizer.encode_completion(text) == (*ids(text), EOS)
    assert tokenizer.encode_prompt(text) == ids(text)


def test_the_begin_token_stands_before_prompts_only(folder: Path) -> None:
    change(folder, add_bos)
    tokenizer = Tokenizer(folder)
    assert tokenizer.encode_prompt("ab") == (29, 2, 3)
    assert tokenizer.encode_prompt("") == (29,)
    assert tokenizer.encode_completion("ab") == (2, 3, EOS)
    assert tokenizer.vocabulary_size == 30


def test_special_tokens_are_left_out_of_the_text(folder: Path) -> None:
    change(folder, add_bos)
    tokenizer = Tokenizer(folder)
    assert tokenizer.decode((29, 2, 0, EOS)) == "a"
    assert tokenizer.decode([EOS]) == ""
    assert tokenizer.decode(()) == ""


def test_byte_level_text_survives_exactly(tmp_path: Path) -> None:
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = FastTokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(["</s>"])
    fast.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "config.json", {"eos_token_id": 256})
    tokenizer = Tokenizer(tmp_path)
    text = " 1 + 1 = 2,\n\té 😀  x"
    encoded = tokenizer.encode_completion(text)
    assert (len(encoded), encoded[-1]) == (len(text.encode()) + 1, 256)
    assert tokenizer.decode(encoded) == text


def test_lengths_set_in_the_file_do_not_apply(folder: Path) -> None:
    def pad_and_cut(fast: FastTokenizer) -> None:
        fast.enable_truncation(max_length=3)
        fast.enable_padding(length=8)

    change(folder, pad_and_cut)
    tokenizer = Tokenizer(folder)
    assert tokenizer.encode_prompt("abcdef") == ids("abcdef")
    assert tokenizer.encode_completion("a") == (2, EOS)


# End tokens


def test_end_tokens_of_the_generation_config_come_first(folder: Path) -> None:
    write(folder, "config.json", {"eos_token_id": 7})
    write(folder, "generation_config.json", {"eos_token_id": [5, 1, 6]})
    tokenizer = Tokenizer(folder)
    assert tokenizer.eos_ids == (5, 1, 6)
    assert tokenizer.eos_id == 5
    assert tokenizer.encode_completion("a") == (2, 5)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config.json": {"eos_token_id": 5}}, (5,)),
        ({"generation_config.json": {"eos_token_id": 0}}, (0,)),  # the first token id is one like any other
        ({"config.json": {"eos_token_id": 7}}, (7,)),
        ({"config.json": {"eos_token_id": [7, 8]}}, (7, 8)),
        ({"generation_config.json": {"temperature": 0.6}, "config.json": {"eos_token_id": 7}}, (7,)),
        ({"generation_config.json": {"eos_token_id": None}, "config.json": {"eos_token_id": 7}}, (7,)),
        ({"generation_config.json": {"eos_token_id": []}, "config.json": {"eos_token_id": 7}}, (7,)),
        ({"config.json": {"vocab_size": 29}}, (EOS,)),
        ({}, (EOS,)),
        ({"tokenizer_config.json": {"eos_token": "b"}}, (3,)),
        ({"tokenizer_config.json": {"eos_token": {"__type": "AddedToken", "content": "c"}}}, (4,)),
    ],
)
def test_where_the_end_token_comes_from(
    folder: Path, files: dict[str, dict[str, object]], expected: tuple[int, ...]
) -> None:
    for name, content in files.items():
        write(folder, name, content)
    assert Tokenizer(folder).eos_ids == expected


@pytest.mark.parametrize(
    "content", [None, {}, {"eos_token": None}, {"eos_token": "<gone>"}, {"eos_token": {}}, {"eos_token": 1}]
)
def test_a_folder_without_an_end_token(folder: Path, content: object) -> None:
    (folder / "tokenizer_config.json").unlink()
    if content is not None:
        write(folder, "tokenizer_config.json", content)
    with pytest.raises(UserError) as caught:
        Tokenizer(folder)
    assert caught.value.seen == f"{folder} defines no end-of-sequence token"
    assert caught.value.rule.startswith("a completion must be able to end")
    assert caught.value.remedy == "add eos_token_id to generation_config.json"


@pytest.mark.parametrize("value", ["</s>", 1.5, True, ["a"], [1, None], {"id": 1}])
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_an_end_token_id_that_is_none(folder: Path, name: str, value: object) -> None:
    write(folder, name, {"eos_token_id": value})
    with pytest.raises(UserError) as caught:
        Tokenizer(folder)
    assert caught.value.seen == f"{folder / name} has eos_token_id = {value!r}"
    assert caught.value.rule == "eos_token_id is a token id or a list of token ids"
    assert "correct it, or remove the key" in caught.value.remedy


def test_an_end_token_that_was_added_later(folder: Path) -> None:
    change(folder, lambda fast: fast.add_special_tokens([AddedToken("<|end|>", special=True)]))
    write(folder, "tokenizer_config.json", {"eos_token": "<|end|>"})
    tokenizer = Tokenizer(folder)
    assert tokenizer.encode_completion("a") == (2, 29)
    assert tokenizer.decode((2, 29)) == "a"


# Damaged folders


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        Tokenizer(tmp_path)
    assert caught.value.seen == f"{tmp_path} has no tokenizer.json"
    assert caught.value.rule == "prompts and completions are tokenised by the model's own fast tokenizer"
    assert "save_pretrained" in caught.value.remedy


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"type": "None"}}'])
def test_a_malformed_tokenizer(folder: Path, content: str) -> None:
    write(folder, "tokenizer.json", content)
    with pytest.raises(UserError) as caught:
        Tokenizer(folder)
    assert caught.value.seen.startswith(f"{folder / 'tokenizer.json'}: ")
    assert caught.value.rule == "tokenizer.json must be readable by `tokenizers`"
    assert caught.value.remedy == "restore it"


@pytest.mark.parametrize("name", ["generation_config.json", "config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b""])
def test_a_malformed_side_file(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        Tokenizer(folder)
    assert str(folder / name) in caught.value.seen
    assert (caught.value.rule, caught.value.remedy) == ("the file holds one JSON object", "restore or delete it")


def test_a_gold_completion_has_the_tokens_that_a_model_would_write(tmp_path: Path) -> None:
    """Llama 2 puts a space in front of every text: alone, ` a` begins with a token that no sample begins with."""
    vocabulary = {"<unk>": 0, "<eos>": 1, "▁": 2, "a": 3, "▁a": 4, "b": 5, ":": 6}
    fast = FastTokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>"))
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "config.json", {"eos_token_id": 1})
    tokenizer = Tokenizer(tmp_path)
    assert fast.encode(" a").ids == [2, 4], "what the trap is made of"
    assert tokenizer.encode_prompt("b:") == (2, 5, 6)
    assert tokenizer.encode_completion(" ab", after="b:") == (4, 5, 1)


def test_a_completion_that_changes_the_prompts_tokens_is_refused(tmp_path: Path) -> None:
    fast = FastTokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    fast.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "config.json", {"eos_token_id": 1})
    with pytest.raises(UserError) as caught:
        Tokenizer(tmp_path).encode_completion("b", after="a")
    assert "tokens of the prompt ending in 'a' change when 'b' follows" in caught.value.seen
    assert "begins where the prompt's tokens end" in caught.value.rule
    assert "space or a line break" in caught.value.remedy
