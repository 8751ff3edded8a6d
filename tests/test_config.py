"""What is written is what is used, and every mistake is named with its key, its rule and a remedy."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from irpo_megatron.artifacts import flatten
from irpo_megatron.config import (
    RESULT_NEUTRAL,
    Config,
    DataConfig,
    ModelConfig,
    RandomModel,
    RandomTokenizer,
    is_neutral,
)
from irpo_megatron.config_file import load_config, validate
from irpo_megatron.config_generation import GenerationConfig
from irpo_megatron.config_rules import check_sections
from irpo_megatron.config_section import Section
from irpo_megatron.config_text import describe
from irpo_megatron.errors import UserError

EXAMPLES = Path(__file__).parents[1] / "examples"
MINIMAL: dict[str, Any] = {
    "name": "run",
    "task": "gsm8k",
    "model": {"path": "model"},
    "data": {"train": "train.jsonl", "test": "test.jsonl"},
}
RANDOM: dict[str, Any] = {"path": None, "random": {"tokenizer": {"kind": "characters"}}}


def write(path: Path, tree: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "run.yaml", MINIMAL)


def refusal(file: Path, *overrides: str) -> UserError:
    with pytest.raises(UserError) as caught:
        load_config(file, overrides)
    return caught.value


# Defaults and descriptions


def test_defaults_are_those_of_the_paper(file: Path) -> None:
    config = load_config(file)
    paper = {
        "method": "irpo",
        "iterations": 4,
        "generation.samples": 30,
        "generation.temperature": 0.8,
        "generation.top_p": 1.0,
        "pairs.per_prompt": 10,
        "loss.alpha": 1.0,
        "loss.beta": 0.1,
        "training.global_batch_size": 16,
        "training.learning_rate": 7e-7,
        "training.schedule": "constant",
        "selection.held_out": 1000,
        "evaluation.samples": 32,
    }
    flat = flatten(config.model_dump(mode="json"))
    assert {key: flat[key] for key in paper} == paper
    assert config.run_dir == Path("runs/run")
    assert config.parallel.world_size == 1


def sections(section: type[Section] = Config) -> Iterator[type[Section]]:
    """Every section of the tree, also those that are null by default."""
    yield section
    for field in section.model_fields.values():
        for candidate in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, Section):
                yield from sections(candidate)


def test_every_key_has_a_description() -> None:
    tree = list(sections())
    assert {RandomModel, RandomTokenizer, DataConfig, GenerationConfig} < set(tree)
    for section in tree:
        assert (section.__doc__ or "").strip(), section
        for name, field in section.model_fields.items():
            is_section = isinstance(field.annotation, type) and issubclass(field.annotation, Section)
            assert is_section or (field.description or "").strip(), f"{section.__name__}.{name}"


def test_described_tree_has_a_sentence_above_every_key(file: Path) -> None:
    lines = describe(load_config(file, ["model.path=null", "model.random.tokenizer.kind=bpe"])).splitlines()
    keys = [index for index, line in enumerate(lines) if not line.strip().startswith("#")]
    assert len(keys) == len(lines) / 2 > 60
    for index in keys:
        indent = re.match(r" *", lines[index])
        assert indent is not None
        assert re.match(indent[0] + r"# \S", lines[index - 1]), lines[index]
    assert "  # K: pairs a prompt; winners and losers are walked round and round until there are K." in lines
    assert lines[lines.index("loss:") - 1] == "# Equation 1 of the paper (v3)."


def test_described_tree_parses_to_the_same_tree(file: Path, tmp_path: Path) -> None:
    config = load_config(file, ["generation.stop=['\\n\\n', \"it's: #1\"]", "generation.temperature=[0.8,1,1.3,2]"])
    text = describe(config)
    assert yaml.safe_load(text) == config.model_dump(mode="json")
    assert load_config(write(tmp_path / "described.yaml", text)) == config


@settings(max_examples=60, deadline=None)
@given(
    source=st.text(max_size=12),
    stop=st.lists(st.text(min_size=1, max_size=5), max_size=3),
    rate=st.floats(min_value=1e-300, max_value=1e300),
    held_out=st.integers(0, 10**9) | st.floats(0, 1, exclude_min=True, exclude_max=True),
)
def test_described_tree_parses_whatever_it_holds(
    source: str, stop: list[str], rate: float, held_out: int | float
) -> None:
    tree = MINIMAL | {
        "data": {"train": source, "test": "t"},
        "generation": {"stop": stop},
        "training": {"learning_rate": rate},
        "selection": {"held_out": held_out},
    }
    config = validate(tree, Path("x.yaml"))
    read = yaml.safe_load(describe(config))
    assert read == config.model_dump(mode="json")
    assert validate(read, Path("x.yaml")) == config
    assert read["data"]["train"] == source
    assert read["selection"]["held_out"] == held_out


def test_result_neutral_keys_exist(file: Path) -> None:
    optional = ["generation.tensorrt_llm={}", "generation.openai={url: http://server/v1}"]
    keys = flatten(load_config(file, optional).model_dump(mode="json"))
    assert {key for key in RESULT_NEUTRAL if not any(f"{name}.".startswith(f"{key}.") for name in keys)} == set()


def test_what_lies_in_a_neutral_section_is_neutral() -> None:
    assert is_neutral("launch.slurm.nodes")
    assert is_neutral("launch.launcher")
    assert not is_neutral("launch.threads")
    assert not is_neutral("launch")


def test_sections_are_frozen(file: Path) -> None:
    config = load_config(file)
    with pytest.raises(ValueError, match="frozen"):
        config.loss.alpha = 2.0


# Files and their bases


def test_overlay_on_a_base(tmp_path: Path) -> None:
    write(
        tmp_path / "base.yaml", MINIMAL | {"loss": {"alpha": 0.5, "beta": 0.3}, "generation": {"temperature": [1, 2]}}
    )
    overlay = {"base": "base.yaml", "iterations": 2, "loss": {"alpha": 2}, "generation": {"temperature": [0.5, 0.6, 1]}}
    config = load_config(write(tmp_path / "overlay.yaml", overlay))
    assert (config.loss.alpha, config.loss.beta) == (2.0, 0.3)  # keys of a section mix
    assert config.generation.temperature == (0.5, 0.6, 1.0)  # a list is replaced
    assert (config.name, config.iterations) == ("run", 2)


def test_base_of_a_base_relative_to_each_file(tmp_path: Path) -> None:
    write(tmp_path / "a" / "root.yaml", MINIMAL | {"seed": 1, "iterations": 7, "loss": {"beta": 0.2}})
    write(tmp_path / "a" / "middle.yaml", {"base": "root.yaml", "seed": 2, "loss": {"alpha": 3}})
    write(tmp_path / "b" / "leaf.yaml", {"base": "../a/middle.yaml", "name": "leaf"})
    config = load_config(tmp_path / "b" / "leaf.yaml")
    assert (config.name, config.seed, config.iterations) == ("leaf", 2, 7)
    assert (config.loss.alpha, config.loss.beta) == (3.0, 0.2)


def test_null_takes_a_key_of_the_base_back(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", MINIMAL | {"pairs": {"max_pairs": 5}})
    config = load_config(write(tmp_path / "o.yaml", {"base": "base.yaml", "pairs": {"max_pairs": None}}))
    assert config.pairs.max_pairs is None


@pytest.mark.parametrize("circle", [["a.yaml"], ["b.yaml", "a.yaml"], ["b.yaml", "c.yaml", "a.yaml"]], ids=len)
def test_circle_of_bases(tmp_path: Path, circle: list[str]) -> None:
    for name, base in zip(["a.yaml", *circle], circle, strict=False):
        write(tmp_path / name, {"base": base})
    error = refusal(tmp_path / "a.yaml")
    assert error.seen == f"{tmp_path / 'a.yaml'} is its own base"
    assert error.rule == "bases must not form a circle"
    assert error.remedy == "remove one `base:` key"


def test_missing_file(tmp_path: Path) -> None:
    error = refusal(tmp_path / "gone.yaml")
    assert error.seen == f"no file {tmp_path / 'gone.yaml'}"
    assert error.rule == "a configuration is a YAML file"
    assert error.remedy == "see examples/ for some to start from"


def test_missing_base(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", {"base": "sub/gone.yaml"})
    assert refusal(tmp_path / "a.yaml").seen == f"no file {tmp_path / 'sub' / 'gone.yaml'}"


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"name: [", "line 1"),
        (b"name: a\nname: b\n", "line 2"),
        (b"name: 'open\n", "line 2"),
        (b"\x00", "position 0"),
        (b"\xff\xfe\xff", "invalid start byte"),
        (b"name: !!python/object/apply:os.system [ls]", "constructor"),
        (b"3\n", "int"),
    ],
)
def test_malformed_yaml(tmp_path: Path, content: bytes, where: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    error = refusal(path)
    assert str(path) in error.seen
    assert where in error.seen
    assert error.rule == "a configuration is a mapping of keys in valid YAML"
    assert error.remedy == "correct the line named"


def test_list_instead_of_a_mapping(tmp_path: Path) -> None:
    error = refusal(write(tmp_path / "c.yaml", "- name: a\n"))
    assert error.seen == f"{tmp_path / 'c.yaml'} holds a ListConfig"
    assert (error.rule, error.remedy) == ("a configuration is a mapping of keys", "write key: value")


def test_base_and_overlay_that_do_not_fit(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", MINIMAL)
    error = refusal(write(tmp_path / "o.yaml", {"base": "base.yaml", "data": ["train.jsonl"]}))
    assert "Cannot merge" in error.seen
    assert (error.rule, error.remedy) == ("the tree must resolve", "correct the key")


@pytest.mark.parametrize("key", ["base: ${gone}", "model: {recipe: '${gone}'}", "seed: ${gone}"])
def test_reference_to_a_key_that_is_not_there(tmp_path: Path, key: str) -> None:
    error = refusal(write(tmp_path / "c.yaml", f"{key}\n"))
    assert "'gone' not found" in error.seen
    assert error.rule == "the tree must resolve"


def test_environment_variables_do_not_reach_the_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    for tree in ({"name": "${oc.env:HF_TOKEN}"}, {"model": {"recipe": "${oc.env:HF_TOKEN}"}}):
        error = refusal(write(tmp_path / "c.yaml", MINIMAL | tree))
        assert "oc.env" in error.seen
        assert "secret" not in str(error)


def test_reference_to_another_key(tmp_path: Path) -> None:
    tree = MINIMAL | {"seed": 5, "name": "${method}-${seed}-${data.train_limit}", "loss": {"beta": "${loss.alpha}"}}
    config = load_config(write(tmp_path / "c.yaml", tree), ["data.train_limit=7"])
    assert config.name == "irpo-5-7"  # `method` has a value though nobody gives one
    assert config.loss.beta == 1.0


def test_empty_file_lacks_the_required_keys(tmp_path: Path) -> None:
    error = refusal(write(tmp_path / "c.yaml", ""))
    assert error.seen == f"{tmp_path / 'c.yaml'}: no name; no task; no data"
    assert error.rule == "name is required; task is required; data is required"
    assert error.remedy == "correct the file or the override"


def test_recipe_is_relative_to_the_file_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"model": {"recipe": "recipes/small.yaml"}, "name": "a", "task": "gsm8k", "data": MINIMAL["data"]}
    write(tmp_path / "conf" / "base.yaml", recipe)
    write(tmp_path / "exp" / "o.yaml", {"base": "../conf/base.yaml"})
    monkeypatch.chdir("/")
    expected = (tmp_path / "conf" / "recipes" / "small.yaml").resolve()
    for path in (tmp_path / "conf" / "base.yaml", tmp_path / "exp" / "o.yaml"):
        found = load_config(path).model.recipe
        assert found is not None
        assert found.resolve() == expected
    # On the command line, a path is relative to where the command is given; elsewhere an absolute one stays.
    assert load_config(tmp_path / "exp" / "o.yaml", ["model.recipe=my.yaml"]).model.recipe == Path("my.yaml")
    write(tmp_path / "conf" / "base.yaml", recipe | {"model": {"recipe": "/elsewhere/r.yaml"}})
    assert load_config(tmp_path / "conf" / "base.yaml").model.recipe == Path("/elsewhere/r.yaml")


def test_defaults_lie_under_the_file(tmp_path: Path) -> None:
    tree = {"name": "a", "task": "gsm8k", "model": {"path": "m"}, "data": {"train": "mine", "train_limit": 3}}
    defaults = {"data": {"train": "theirs", "test": "theirs"}}
    data = load_config(write(tmp_path / "c.yaml", tree), ["data.test_limit=7"], defaults=defaults).data
    assert data == DataConfig(train="mine", test="theirs", train_limit=3, test_limit=7)
    assert defaults == {"data": {"train": "theirs", "test": "theirs"}}


# Overrides


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("loss.alpha=0", 0.0),
        ("loss.alpha=1e-4", 0.0001),
        ("loss.alpha=25E-1", 2.5),
        ("training.learning_rate=7.0e-07", 7e-7),
        ("generation.samples=8", 8),
        ("generation.samples=1e2", 100),
        ("generation.temperature=[0.8,1.0,1.2,1.3]", [0.8, 1.0, 1.2, 1.3]),
        ("evaluation.pass_at=[]", []),
        ("generation.stop=['a=b', '\\n']", ["a=b", "\\n"]),
        ('generation.stop=["\\n\\n"]', ["\n\n"]),
        ("training.max_steps=null", None),
        ("training.max_steps=5", 5),
        ("training.shuffle=false", False),
        ("pairs.gold_as_winner=true", True),
        ("data.train=generate:train:1000", "generate:train:1000"),
        ("data.train=hub:a/b", "hub:a/b"),
        ("data.train=a=b", "a=b"),
        ("selection.held_out=0.25", 0.25),
        ("selection.held_out=25", 25),
        ("name=x-1.b_2", "x-1.b_2"),
        ("iterations=4", 4),
    ],
)
def test_override(file: Path, override: str, value: object) -> None:
    key = override.partition("=")[0]
    found = flatten(load_config(file, [override]).model_dump(mode="json"))[key]
    assert found == value
    assert type(found) is type(value)


def test_the_last_override_wins(file: Path) -> None:
    assert load_config(file, ["seed=1", "seed=2"]).seed == 2


@settings(max_examples=50, deadline=None)
@given(value=st.floats(min_value=1e-30, max_value=1e30), form=st.sampled_from(["r", ".17e", ".20E"]))
def test_a_number_is_read_as_it_is_written(tmp_path_factory: pytest.TempPathFactory, value: float, form: str) -> None:
    text = repr(value) if form == "r" else format(value, form)
    file = tmp_path_factory.getbasetemp() / "number.yaml"
    write(file, MINIMAL)
    assert load_config(file, [f"loss.alpha={text}"]).loss.alpha == value
    write(file, yaml.safe_dump(MINIMAL) + f"loss: {{alpha: {text}}}\n")
    assert load_config(file).loss.alpha == value


@pytest.mark.parametrize("number", ["1e-4", "1E-4", "1e-04", "0.0001", "1.0e-4", "+1e-4", ".0001"])
def test_scientific_notation_is_a_number_in_a_file_too(tmp_path: Path, number: str) -> None:
    text = yaml.safe_dump(MINIMAL) + f"training: {{learning_rate: {number}}}\n"
    assert load_config(write(tmp_path / "c.yaml", text)).training.learning_rate == 0.0001


@pytest.mark.parametrize(
    "override", ["loss.alpha", "=3", "", "[=3", ".seed=1", "loss..alpha=1", "evaluation.pass_at.0=3"]
)
def test_override_without_a_key_or_a_value(file: Path, override: str) -> None:
    error = refusal(file, override)
    assert error.seen == f"override '{override}'"
    assert error.rule == "an override has the form section.key=value"
    assert error.remedy == "for example loss.alpha=0"


@pytest.mark.parametrize("override", ["loss.alpha=[1,", "seed=${gone}", "data=[1]"])
def test_override_that_does_not_resolve(file: Path, override: str) -> None:
    error = refusal(file, override)
    assert error.seen.startswith(f"{file} {override}: ")
    assert (error.rule, error.remedy) == ("the tree must resolve", "correct the key")


# Values


@pytest.mark.parametrize(
    "key", ["sead", "loss.gamma", "model.random.hidden", "base", "loss.alpha_", "data.validation", "training.lr"]
)
def test_unknown_key(file: Path, key: str) -> None:
    overrides = ["model.path=null", "model.random.tokenizer.kind=bpe"] if "random" in key else []
    error = refusal(file, *overrides, f"{key}=1")
    assert error.seen == f"{file}: unknown key {key}"
    assert error.rule == f"{key}: only the keys that `irpo config` prints exist"
    assert error.remedy == "correct the file or the override"


@pytest.mark.parametrize(
    ("override", "value", "rule"),
    [
        # Never adjusted silently: no rounding, no 1 for true, no text for a number.
        ("generation.samples=1.5", "1.5", "Input should be a valid integer, got a number with a fractional part"),
        ("generation.samples=true", "True", "Input should be a number, not true or false"),
        ("seed=false", "False", "Input should be a number, not true or false"),
        ("loss.alpha=true", "True", "Input should be a number, not true or false"),
        ("evaluation.pass_at=[1,true]", "[1, True]", "Input should be a number, not true or false"),
        ("selection.held_out=true", "True", "Input should be a number, not true or false"),
        ("loss.alpha=abc", "'abc'", "Input should be a valid number, unable to parse string as a number"),
        ("generation.samples=ten", "'ten'", "Input should be a valid integer, unable to parse string as an integer"),
        ("loss.alpha=[1]", "[1]", "Input should be a valid number"),
        ("loss.alpha=null", "None", "Input should be a valid number"),
        ("loss.alpha=", "None", "Input should be a valid number"),
        ("training.shuffle=perhaps", "'perhaps'", "Input should be a valid boolean, unable to interpret input"),
        ("name=5", "5", "Input should be a valid string"),
        ("generation.stop=abc", "'abc'", "Input should be a valid tuple"),
        ("loss=3", "3", "Input should be a section, a mapping of keys"),
        ("loss=null", "None", "Input should be a section, a mapping of keys"),
        # Outside of their range.
        ("generation.samples=0", "0", "Input should be greater than or equal to 1"),
        ("generation.max_tokens=-1", "-1", "Input should be greater than or equal to 1"),
        ("generation.top_p=0", "0", "Input should be greater than 0"),
        ("generation.top_p=1.01", "1.01", "Input should be less than or equal to 1"),
        ("generation.max_empty_share=-0.1", "-0.1", "Input should be greater than or equal to 0"),
        ("pairs.per_prompt=0", "0", "Input should be greater than or equal to 1"),
        ("loss.alpha=-1", "-1", "Input should be greater than or equal to 0"),
        ("loss.beta=0", "0", "Input should be greater than 0"),
        ("training.learning_rate=.inf", "inf", "Input should be a finite number"),
        ("training.learning_rate=.nan", "nan", "Input should be a finite number"),
        ("training.adam_beta1=1", "1", "Input should be less than 1"),
        ("training.adam_beta2=1.0", "1.0", "Input should be less than 1"),
        ("seed=2147483648", "2147483648", "Input should be less than 2147483648"),
        ("generation.stop=['']", "['']", "String should have at least 1 character"),
        ("task=gsm9k", "'gsm9k'", "Input should be 'gsm8k', 'math', 'arc' or 'arithmetic'"),
        ("method=dpo", "'dpo'", "Input should be 'irpo', 'star' or 'sft'"),
        ("tracking.to=[tensorbord]", "['tensorbord']", "Input should be 'tensorboard', 'wandb' or 'mlflow'"),
        # Of several kinds: one sentence, under the key that was written.
        ("selection.held_out=-3", "-3", "Input should be greater than or equal to 0, or greater than 0"),
        (
            "selection.held_out=1.5",
            "1.5",
            "Input should be a valid integer, got a number with a fractional part, or less than 1",
        ),
        ("generation.temperature=[0.8,-1]", "[0.8, -1]", "Input should be a valid number, or greater than 0"),
        ("generation.temperature=[-2,-1]", "[-2, -1]", "Input should be a valid number, or greater than 0"),
        (
            "generation.temperature=hot",
            "'hot'",
            "Input should be a valid number, unable to parse string as a number, or a valid tuple",
        ),
        ("generation.temperature=0", "0", "Input should be greater than 0, or a valid tuple"),
    ],
)
def test_value_that_breaks_its_rule(file: Path, override: str, value: str, rule: str) -> None:
    key = override.partition("=")[0]
    error = refusal(file, override)
    assert error.seen == f"{file}: {key} = {value}"
    assert error.rule == f"{key}: {rule}"
    assert error.remedy == "correct the file or the override"


@pytest.mark.parametrize(
    "override",
    [
        "generation.openai.url=ftp://server/v1",
        "generation.openai.url=http://user:password@server/v1",  # it would be written into the run directory
        "generation.openai.url=http://server/v1?key=secret",
        "generation.openai={url: http://server/v1, model: llama}",  # the same model in every iteration
    ],
)
def test_servers_that_are_refused(file: Path, override: str) -> None:
    assert "should match pattern" in refusal(file, override).rule


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "-x", "a b", "ü"])
def test_name_that_is_no_folder_name(tmp_path: Path, name: str) -> None:
    error = refusal(write(tmp_path / "c.yaml", MINIMAL | {"name": name}))
    assert f"name = {name!r}" in error.seen
    assert "String should match pattern" in error.rule


def test_several_mistakes_are_told_at_once(file: Path) -> None:
    error = refusal(file, "loss.alpha=-1", "selection.held_out=-1", "sead=1", "model.random={}")
    assert error.seen == (
        f"{file}: no model.random.tokenizer; loss.alpha = -1; selection.held_out = -1; unknown key sead"
    )
    assert error.rule == (
        "model.random.tokenizer is required; loss.alpha: Input should be greater than or equal to 0; "
        "selection.held_out: Input should be greater than or equal to 0, or greater than 0; "
        "sead: only the keys that `irpo config` prints exist"
    )


def test_key_that_is_no_text(tmp_path: Path) -> None:
    error = refusal(write(tmp_path / "c.yaml", yaml.safe_dump(MINIMAL) + "1: 2\n"))
    assert error.seen.endswith("1 = 2")
    assert error.rule == "1: Keys should be strings"


def leaves(section: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.annotation


NUMBERS = [key for key, annotation in leaves(Config) if re.search(r"\b(int|float)\b", str(annotation))]


def test_numbers_are_found() -> None:
    assert {"seed", "loss.beta", "generation.temperature", "evaluation.pass_at", "selection.held_out"} < set(NUMBERS)
    assert not {"name", "training.shuffle", "tracking.to", "data.train"} & set(NUMBERS)


@pytest.mark.parametrize("key", NUMBERS)
def test_no_number_takes_anything_else(key: str) -> None:
    for value in (True, False, [True], "abc", {"a": 1}):
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        with pytest.raises(UserError) as caught:
            validate(OmegaConf.to_container(OmegaConf.merge(MINIMAL, nested)), Path("run.yaml"))
        assert caught.value.seen == f"run.yaml: {key} = {value!r}"
        assert caught.value.rule.count(f"{key}:") == 1


def test_validate_names_its_file() -> None:
    with pytest.raises(UserError) as caught:
        validate(MINIMAL | {"seed": -1}, Path("runs/x/config.yaml"))
    assert caught.value.seen == "runs/x/config.yaml: seed = -1"
    assert caught.value.rule == "seed: Input should be greater than or equal to 0"


# Rules between sections


@pytest.mark.parametrize(
    ("overrides", "seen", "rule", "remedy"),
    [
        (
            ["model.path=null"],
            "model has none of path, recipe, random",
            "exactly one of model.path, model.recipe, model.random says where M_0 comes from",
            "set model.path=FOLDER",
        ),
        (
            ["model.recipe=r.yaml", "model.random.tokenizer.kind=bpe"],
            "model has path and recipe and random",
            "exactly one of model.path, model.recipe, model.random says where M_0 comes from",
            "set the others to null, for example model.recipe=null",
        ),
        (
            ["method=star", "loss.alpha=0"],
            "method = star, loss.alpha = 0, pairs.per_prompt = 10",
            "method star has no DPO term, so alpha = 0 leaves nothing to train on its pairs",
            "set loss.alpha above 0, or method=irpo for plain DPO",
        ),
        (
            ["method=sft", "loss.alpha=0", "iterations=1"],
            "method = sft, loss.alpha = 0, pairs.per_prompt = 10",
            "method sft has no DPO term, so alpha = 0 leaves nothing to train on its pairs",
            "set loss.alpha above 0, or method=irpo for plain DPO",
        ),
        (
            ["generation.temperature=[0.8,1.3]", "iterations=3"],
            "generation.temperature = (0.8, 1.3), iterations = 3",
            "a list of temperatures has one for each iteration",
            "lengthen the list or give one number",
        ),
        (
            ["training.global_batch_size=10", "training.micro_batch_size=2", "parallel.data=2"],
            "training.global_batch_size = 10, training.micro_batch_size = 2, parallel.data = 2",
            "the global batch, in pairs, is a multiple of the data-parallel size, times the micro-batch size if given",
            "use a multiple of 4",
        ),
        (
            ["training.global_batch_size=10", "parallel.data=4"],
            "training.global_batch_size = 10, training.micro_batch_size = null, parallel.data = 4",
            "the global batch, in pairs, is a multiple of the data-parallel size, times the micro-batch size if given",
            "use a multiple of 4",
        ),
        (
            ["parallel.sequence=true", "parallel.context=2"],
            "parallel.sequence = true, parallel.tensor = 1",
            "sequence parallelism cuts norms and residuals over the tensor-parallel ranks, so there must be several",
            "set parallel.tensor above 1, or parallel.sequence=false",
        ),
        (
            ["parallel.virtual_pipeline=3"],
            "parallel.virtual_pipeline = 3, parallel.pipeline = 1",
            "an interleaved pipeline deals out groups of layers in turn to several pipeline stages",
            "set parallel.pipeline above 1, or parallel.virtual_pipeline=1",
        ),
        (
            ["training.learning_rate=1e-4", "training.min_learning_rate=1e-3"],
            "training.min_learning_rate = 0.001 > learning_rate = 0.0001",
            "the schedule falls from learning_rate to min_learning_rate",
            "lower min_learning_rate",
        ),
        (
            ["selection.held_out=0"],
            "selection.held_out = 0, candidates = 4, retrain = False",
            "checkpoints are judged on held-out problems, so choosing or retraining needs some",
            "set selection.held_out, or selection.candidates=1 and selection.retrain=false",
        ),
        (
            ["selection.held_out=0", "selection.candidates=1", "selection.retrain=true"],
            "selection.held_out = 0, candidates = 1, retrain = True",
            "checkpoints are judged on held-out problems, so choosing or retraining needs some",
            "set selection.held_out, or selection.candidates=1 and selection.retrain=false",
        ),
        (
            ["evaluation.samples=4", "evaluation.pass_at=[1,4,5,8]"],
            "evaluation.pass_at has [5, 8], evaluation.samples = 4",
            "pass@k is estimated from at least k samples",
            "raise evaluation.samples or shorten evaluation.pass_at",
        ),
        (
            ["method=sft"],
            "method = sft, iterations = 4",
            "gold solutions do not change between iterations: more of the same training is training.epochs",
            "set iterations=1",
        ),
        (
            ["precision.fp8.recipe=tensorwise"],
            "precision.dtype = fp32, precision.fp8.recipe = tensorwise",
            "FP8 matrix products take and give bf16",
            "set precision.dtype=bf16, or precision.fp8=null",
        ),
        (
            [
                "precision.dtype=bf16",
                "precision.fp8.recipe=delayed",
                "precision.fp8.first_layers_bf16=1",
                "precision.fp8.last_layers_bf16=2",
            ],
            "precision.fp8 has recipe = delayed, first_layers_bf16 = 1, last_layers_bf16 = 2",
            "recipe delayed keeps the maxima of all layers together, so no layer can be left out",
            "choose recipe tensorwise, or keep no layers in bf16",
        ),
        *(
            (
                ["precision.dtype=bf16", f"precision.fp8.recipe={recipe}", f"precision.fp8.{key}={value}"],
                f"precision.fp8 has recipe = {recipe}, {key} = {value}",
                "only recipe delayed looks back on maxima and has a margin",
                "leave these keys out, or choose recipe delayed",
            )
            for recipe, key, value in [
                ("tensorwise", "amax_history", 16),
                ("blockwise", "margin", 1),
                ("mxfp8", "amax_history", 1),
            ]
        ),
        *(
            (
                [f"generation.backend={backend}"],
                f"generation.backend = {backend}, generation.{backend} = null",
                "this backend has a section of its own",
                f"set 'generation.{backend}={section}', or generation.backend=transformers",
            )
            for backend, section in [("tensorrt_llm", "{}"), ("openai", "{url: ADDRESS}")]
        ),
        *(
            (
                [f"generation.backend={backend}", *section, "generation.tensorrt_llm.fp8_weights={}"],
                f"generation.backend = {backend}, generation.tensorrt_llm.fp8_weights is given",
                "FP8 copies are made for TensorRT-LLM: transformers computes in fp32 or bf16, a server loads what it "
                "serves",
                "set generation.backend=tensorrt_llm, or generation.tensorrt_llm.fp8_weights=null",
            )
            for backend, section in [("transformers", []), ("openai", ["generation.openai={url: http://s/v1}"])]
        ),
        (
            ["generation.tensorrt_llm.extra={trust_remote_code: true, attn_backend: TRTLLM, model: m}"],
            "generation.tensorrt_llm.extra has model, trust_remote_code",
            "extra is for what has no key here and is not fixed by this package",
            "take model, trust_remote_code out of it; `irpo config` prints the keys that there are",
        ),
        (
            ["generation.openai={url: http://server/v1, extra: {seed: 1}}"],
            "generation.openai.extra has seed",
            "extra is for what has no key here and is not fixed by this package",
            "take seed out of it; `irpo config` prints the keys that there are",
        ),
        *(
            (
                [
                    "model.path=null",
                    "model.random.tokenizer.kind=bpe",
                    f"model.random.hidden_size={width}",
                    f"model.random.heads={heads}",
                    f"model.random.kv_heads={groups}",
                ],
                f"model.random has hidden_size {width}, heads {heads}, kv_heads {groups}",
                "hidden_size / heads is a whole even number (rotary embeddings), and kv_heads divides heads",
                "choose for example hidden_size=64 heads=4 kv_heads=4",
            )
            for width, heads, groups in [(60, 8, 4), (20, 4, 4), (64, 4, 3), (64, 4, 8)]
        ),
    ],
)
def test_rule_between_keys(file: Path, overrides: list[str], seen: str, rule: str, remedy: str) -> None:
    error = refusal(file, *overrides)
    assert (error.seen, error.rule, error.remedy) == (seen, rule, remedy)
    assert str(error) == f"{seen}\n  rule:   {rule}\n  remedy: {remedy}"


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss.alpha=0"],  # plain DPO
        ["method=star"],
        ["method=sft", "iterations=1"],
        ["generation.temperature=[0.8,0.8,1.3,1.3]"],
        ["generation.temperature=[0.8,0.8,1.3,1.3,1.3]"],
        ["training.global_batch_size=12", "training.micro_batch_size=3", "parallel.data=4"],
        ["training.global_batch_size=12", "parallel.data=4"],
        ["parallel.sequence=true", "parallel.tensor=2"],
        ["parallel.virtual_pipeline=2", "parallel.pipeline=2"],
        ["parallel.tensor=2", "parallel.context=3", "parallel.pipeline=5"],
        ["training.min_learning_rate=7e-7"],
        ["selection.held_out=0", "selection.candidates=1"],
        ["selection.held_out=0.1", "selection.retrain=true"],
        ["evaluation.samples=0"],  # pass@k is left out, whatever pass_at says
        ["evaluation.samples=5", "evaluation.pass_at=[5]"],
        ["precision.dtype=bf16"],
        ["precision.dtype=bf16", "precision.fp8={recipe: delayed, amax_history: 16, margin: 1}"],
        ["precision.dtype=bf16", "precision.fp8={recipe: tensorwise, first_layers_bf16: 1, last_layers_bf16: 2}"],
        ["precision.dtype=bf16", "precision.fp8={recipe: mxfp8, format: e4m3, amax_history: 1024}"],
        ["generation.backend=tensorrt_llm", "generation.tensorrt_llm={}"],
        ["generation.backend=tensorrt_llm", "generation.tensorrt_llm.fp8_weights.calibration_prompts=64"],
        ["generation.backend=tensorrt_llm", "generation.tensorrt_llm.extra={attn_backend: TRTLLM}"],
        ["generation.backend=openai", "generation.openai.url=http://127.0.0.1:8000/v1"],
        ["generation.openai={url: http://server/v1, extra: {return_token_ids: true}}"],
        ["model.path=null", "model.recipe=r.yaml"],
        ["model.path=null", "model.random={tokenizer: {kind: characters}, hidden_size: 8, heads: 4, kv_heads: 2}"],
    ],
)
def test_what_the_rules_allow(file: Path, overrides: list[str]) -> None:
    load_config(file, overrides)


def test_rules_hold_for_a_tree_built_in_python() -> None:
    config = Config(name="a", task="math", data=DataConfig(train="x", test="y"))
    with pytest.raises(UserError, match="none of path, recipe, random"):
        check_sections(config)
    check_sections(config.model_copy(update={"model": ModelConfig(path=Path("m"))}))


# Every YAML that ships


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("**/*.yaml")), ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_examples(path: Path) -> None:
    config = load_config(path, defaults={"data": {"train": "train.jsonl", "test": "test.jsonl"}})
    recipe = config.model.recipe
    assert recipe is None or recipe.resolve() in EXAMPLES.resolve().glob("**/*.yaml")
    assert yaml.safe_load(describe(config)) == config.model_dump(mode="json")


def test_there_are_examples() -> None:
    assert {"arithmetic_cpu.yaml", "gsm8k_cpu.yaml"} <= {path.name for path in EXAMPLES.glob("**/*.yaml")}
