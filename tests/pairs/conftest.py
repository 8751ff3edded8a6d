"""A model folder with the characters of chain arithmetic and a context of 64 tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from irpo_megatron.base_model.random_llama import write_random_llama
from irpo_megatron.base_model.tokenizers import character_tokenizer, write_tokenizer
from irpo_megatron.config import RandomModel, RandomTokenizer
from irpo_megatron.tasks.arithmetic import ALPHABET, PHRASES

CONTEXT = 64


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = character_tokenizer(ALPHABET, PHRASES)
    write_tokenizer(tokenizer, folder, context=CONTEXT)
    shape = RandomModel(tokenizer=RandomTokenizer(kind="characters"), hidden_size=8, layers=1, context=CONTEXT)
    write_random_llama(folder, shape, vocabulary=tokenizer.get_vocab_size(), seed=0)
    return folder
