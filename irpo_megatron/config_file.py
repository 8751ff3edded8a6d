"""The configuration from YAML: an overlay on its bases, dotted overrides, validation, each mistake in one message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from irpo_megatron.config import Config
from irpo_megatron.config_rules import check_sections
from irpo_megatron.errors import UserError


def load_config(path: Path, overrides: Sequence[str] = (), defaults: Mapping[str, Any] | None = None) -> Config:
    """Read `path` over its bases, apply `section.key=value` overrides, validate.

    Args:
        defaults: A tree that the file is laid over.

    Raises:
        UserError: a file is missing or malformed, a key is unknown, or a value breaks a rule.
    """
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not all(part.isidentifier() for part in key.split(".")):
            raise UserError(
                f"override '{override}'", "an override has the form section.key=value", "for example loss.alpha=0"
            )
    # A configuration is not trusted: it must not copy environment variables (tokens, say) into the run directory.
    OmegaConf.clear_resolver("oc.env")
    try:
        tree = _read_overlay(path, seen=())
        # The tree's own defaults lie below, so that `${seed}` has a value where no file gives one.
        merged = OmegaConf.merge(_default_tree(), defaults or {}, tree, OmegaConf.from_dotlist(list(overrides)))
        values = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(
            f"{' '.join([str(path), *overrides])}: {error}", "the tree must resolve", "correct the key"
        ) from error
    config = validate(values, path)
    check_sections(config)
    return config


def _default_tree() -> dict[str, Any]:
    optional = {name: field.default for name, field in Config.model_fields.items() if not field.is_required()}
    tree: dict[str, Any] = to_jsonable_python(optional)
    return tree


def validate(values: object, path: Path) -> Config:
    """A resolved tree as a `Config`; the rules between sections are left to `check_sections`.

    Args:
        path: The file that the tree comes from, for the message.

    Raises:
        UserError: a key is unknown or missing, or a value breaks its section's rules.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise _as_user_error(path, values, error) from error


def _read_overlay(path: Path, seen: tuple[Path, ...]) -> DictConfig:
    """One YAML file merged over the file that its key `base` names (relative to itself)."""
    if path.resolve() in seen:
        raise UserError(f"{path} is its own base", "bases must not form a circle", "remove one `base:` key")
    if not path.is_file():
        raise UserError(f"no file {path}", "a configuration is a YAML file", "see examples/ for some to start from")
    try:
        tree = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: {error}", "a configuration is a mapping of keys in valid YAML", "correct the line named"
        ) from error
    if not isinstance(tree, DictConfig):
        raise UserError(
            f"{path} holds a {type(tree).__name__}", "a configuration is a mapping of keys", "write key: value"
        )
    # Paths to other configurations are relative to the file that names them, so that examples run from anywhere.
    recipe = OmegaConf.select(tree, "model.recipe")
    if isinstance(recipe, str):
        OmegaConf.update(tree, "model.recipe", str(path.parent / recipe))
    base = tree.pop("base", None)
    if base is None:
        return tree
    merged = OmegaConf.merge(_read_overlay(path.parent / str(base), (*seen, path.resolve())), tree)
    assert isinstance(merged, DictConfig)
    return merged


def _as_user_error(path: Path, values: object, error: ValidationError) -> UserError:
    """One sentence for each key that the user wrote, or should have."""
    seen: dict[str, str] = {}
    rules: dict[str, list[str]] = {}
    for detail in error.errors():
        key, value = _as_written(detail["loc"], values)
        if detail["type"] == "missing":
            key = f"{key}.{detail['loc'][-1]}".lstrip(".")
            seen[key], rule = f"no {key}", f"{key} is required"
        elif detail["type"] == "extra_forbidden":
            seen[key], rule = f"unknown key {key}", f"{key}: only the keys that `irpo config` prints exist"
        else:
            is_section = detail["type"] in ("model_type", "model_attributes_type")
            message = "Input should be a section, a mapping of keys" if is_section else detail["msg"]
            # A second message comes from another member of a union, or from another entry of a list.
            rule = message.removeprefix("Input should be ") if key in rules else f"{key}: {message}"
            seen[key] = f"{key} = {value!r}"
        told = rules.setdefault(key, [])
        if not any(other.endswith(rule) for other in told):
            told.append(rule)
    broken = "; ".join(", or ".join(told) for told in rules.values())
    return UserError(f"{path}: " + "; ".join(seen.values()), broken, "correct the file or the override")


def _as_written(location: tuple[int | str, ...], values: object) -> tuple[str, object]:
    """The key that pydantic's `location` lies in, and its value: without members of unions and places in lists."""
    keys = []
    for part in location:
        if isinstance(values, dict) and part in values:
            keys.append(str(part))
            values = values[part]
    return ".".join(keys), values
