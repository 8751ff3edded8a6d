"""Text to token ids and back, from the tokenizer files of a Hugging Face folder.

Only the `tokenizers` library is needed, and only inside the constructor: the base install has no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from irpo_megatron.artifacts import Json, read_json
from irpo_megatron.errors import UserError


class Tokenizer:
    """The tokenizer of one model folder.

    Attributes:
        eos_ids: Token ids that end a completion: those of generation_config.json, else config.json, else the
            `eos_token` of tokenizer_config.json.
    """

    def __init__(self, folder: Path) -> None:
        """Read `tokenizer.json` and the special tokens.

        Raises:
            UserError: the folder has no tokenizer.json, it is malformed, or no end token is defined.
        """
        from tokenizers import Tokenizer as FastTokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(
                f"{folder} has no tokenizer.json",
                "prompts and completions are tokenised by the model's own fast tokenizer",
                f"write one: AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}') in transformers",
            )
        try:
            self._fast = FastTokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for malformed files
            raise UserError(
                f"{path}: {error}", "tokenizer.json must be readable by `tokenizers`", "restore it"
            ) from error
        self._fast.no_padding()
        self._fast.no_truncation()
        self.eos_ids = self._end_tokens(folder)

    def _end_tokens(self, folder: Path) -> tuple[int, ...]:
        for name in ("generation_config.json", "config.json"):
            eos = _json_or_empty(folder / name).get("eos_token_id")
            identities = eos if isinstance(eos, list) else [] if eos is None else [eos]
            if not all(isinstance(identity, int) and not isinstance(identity, bool) for identity in identities):
                raise UserError(
                    f"{folder / name} has eos_token_id = {eos!r}",
                    "eos_token_id is a token id or a list of token ids",
                    "correct it, or remove the key so that the eos_token of tokenizer_config.json counts",
                )
            if identities:
                return tuple(identities)
        token = _json_or_empty(folder / "tokenizer_config.json").get("eos_token")
        content = token.get("content") if isinstance(token, dict) else token
        identity = self._fast.token_to_id(content) if isinstance(content, str) else None
        if identity is None:
            raise UserError(
                f"{folder} defines no end-of-sequence token",
                "a completion must be able to end: eos_token_id in generation_config.json or config.json, or eos_token",
                "add eos_token_id to generation_config.json",
            )
        return (identity,)

    @property
    def eos_id(self) -> int:
        """The end token that is written; any of `eos_ids` ends a completion that is read."""
        return self.eos_ids[0]

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        """Token ids of a prompt, with whatever the tokenizer itself puts in front (Llama: the BOS token)."""
        return tuple(self._fast.encode(text, add_special_tokens=True).ids)

    def encode_completion(self, text: str, *, after: str = "") -> tuple[int, ...]:
        """Token ids of a completion that follows the prompt `after`: no special tokens, and the end token last.

        The two are encoded together, as a model would have written them: alone, a text may begin with other tokens
        than after a prompt (Llama 2 puts a space in front of every text).

        Raises:
            UserError: the prompt's own tokens are others when the text follows, so that nothing says where it begins.
        """
        prompt = self._fast.encode(after, add_special_tokens=False).ids
        whole = self._fast.encode(after + text, add_special_tokens=False).ids
        if whole[: len(prompt)] != prompt:
            raise UserError(
                f"the tokens of the prompt ending in {after[-20:]!r} change when {text[:20]!r} follows",
                "a gold solution begins where the prompt's tokens end",
                "let the solution begin with a space or a line break",
            )
        return (*whole[len(prompt) :], self.eos_id)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of a text alone, without special tokens around it."""
        return tuple(self._fast.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a completion's ids, special tokens left out."""
        text: str = self._fast.decode(list(ids), skip_special_tokens=True)
        return text

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids, added tokens included."""
        size: int = self._fast.get_vocab_size(with_added_tokens=True)
        return size


def _json_or_empty(path: Path) -> Json:
    return read_json(path) if path.is_file() else {}
