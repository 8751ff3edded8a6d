"""Tokenizers for models that start from nothing: the characters of a task, or byte-level BPE learned from its texts.

Both decode to the text that was encoded, character for character. Their special tokens have fixed ids, and `<bos>` is
put in front of a prompt by the tokenizer itself, as Llama's does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from irpo_megatron.artifacts import write_json
from irpo_megatron.errors import UserError

PAD, EOS, BOS = "<pad>", "<eos>", "<bos>"
SPECIAL_TOKENS = (PAD, EOS, BOS)
"""In the order of their ids: 0, 1, 2."""
PAD_ID, EOS_ID, BOS_ID = range(3)


def character_tokenizer(alphabet: str, phrases: Sequence[str]) -> Tokenizer:
    """One token a character, and one a phrase.

    Encoding another character raises: there is no token for the unknown, which could not be decoded again.
    """
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    # No special tokens: what is decoded without special tokens keeps the phrases.
    tokenizer.add_tokens([AddedToken(phrase, normalized=False, special=False) for phrase in phrases])
    return _with_special_tokens(tokenizer)


def bpe_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE: every text can be encoded, the merges are learned from `texts`.

    The vocabulary is smaller than asked for where the texts are too few for so many merges.

    Raises:
        UserError: `vocabulary` does not hold the 256 bytes and the special tokens.
    """
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(bytes_) + len(SPECIAL_TOKENS)
    if vocabulary < smallest:
        raise UserError(
            f"model.random.tokenizer.vocabulary = {vocabulary}",
            f"a byte-level vocabulary holds {len(bytes_)} bytes and {len(SPECIAL_TOKENS)} special tokens",
            f"set it to {smallest} or more",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=bytes_, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _with_special_tokens(tokenizer)


def _with_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path, *, context: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`; `context` is the model's longest sequence in tokens."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    write_json(folder / "tokenizer_config.json", config)
