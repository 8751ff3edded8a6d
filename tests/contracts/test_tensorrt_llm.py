"""The record of TensorRT-LLM that its adapter is written to: compared with the package where there is one.

The stand-in of tests/support is built from the same record, so what it accepts is what the record says.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticUndefined

CONTRACT: dict[str, Any] = json.loads((Path(__file__).parent / "tensorrt_llm_1_2.json").read_text())
installed = pytest.mark.skipif(importlib.util.find_spec("tensorrt_llm") is None, reason="needs TensorRT-LLM")


def resolve(name: str) -> Any:
    """`tensorrt_llm.llmapi.KvCacheConfig` -> that class."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise AssertionError(name)


def keywords(call: Any) -> dict[str, Any]:
    """Keyword -> its default, of a function, a dataclass or a pydantic model."""
    if hasattr(call, "model_fields"):
        fields = {name: field.get_default(call_default_factory=True) for name, field in call.model_fields.items()}
        return {name: "required" if value is PydanticUndefined else value for name, value in fields.items()}
    parameters = inspect.signature(call).parameters.items()
    return {name: "required" if p.default is p.empty else p.default for name, p in parameters if name != "self"}


@installed
@pytest.mark.parametrize("name", CONTRACT["calls"])
def test_every_keyword_that_is_used_exists_with_its_default(name: str) -> None:
    found = keywords(resolve(name))
    if name == "tensorrt_llm.LLM":  # takes the fields of its arguments' type as keywords
        found = keywords(resolve("tensorrt_llm.llmapi.llm_args.TorchLlmArgs")) | found
    recorded = CONTRACT["calls"][name]
    assert recorded.keys() <= found.keys()
    plain = {key: value for key, value in recorded.items() if value not in ("a default", "required")}
    assert {key: getattr(found[key], "value", found[key]) for key in plain} == plain


@installed
@pytest.mark.parametrize("name", CONTRACT["attributes"])
def test_every_attribute_that_is_read_exists(name: str) -> None:
    found = resolve(name)
    assert set(CONTRACT["attributes"][name]) <= {*dir(found), *getattr(found, "__dataclass_fields__", {})}


@installed
def test_the_release_is_the_one_that_is_recorded() -> None:
    assert importlib.import_module("tensorrt_llm").__version__ == CONTRACT["release"]


def test_the_record_has_the_classes_that_the_adapter_imports_and_no_other() -> None:
    """Of their keywords, the stand-in refuses those that do not stand there."""
    source = Path(__file__).parents[2] / "irpo_megatron" / "generation" / "tensorrt_llm.py"
    text = source.read_text(encoding="utf-8")
    imported = {line.split(" import ")[1] for line in text.splitlines() if "from tensorrt_llm" in line}
    names = {name for line in imported for name in line.split(", ")}
    assert names == {call.split(".")[-1] for call in CONTRACT["calls"] if call.split(".")[-1][0].isupper()}
