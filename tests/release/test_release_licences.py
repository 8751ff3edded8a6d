"""What each licence asks: the base model's folder says which it is, and what is missing is refused, never guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from markdown_it.token import Token
from release.reading import links, read_card, section, text_of
from release.released_run import MODEL_FILES, checkpoint_of, make_base, make_run

from irpo_megatron.artifacts import MANIFEST, manifest_digest, read_json, write_json
from irpo_megatron.errors import UserError
from irpo_megatron.release.release import Outcome, release

# Titles as the licences have them; what follows is not theirs.
TEXTS = {
    "llama2": "LLAMA 2 COMMUNITY LICENSE AGREEMENT\t\nLlama 2 Version Release Date: ...",
    "llama3": "META LLAMA 3 COMMUNITY LICENSE AGREEMENT\n\nMeta Llama 3 Version Release Date: ...",
    "llama3.1": " LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n\n ...",
    "llama3.2": "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\n...",
    "llama3.3": "**LLAMA 3.3 COMMUNITY LICENSE AGREEMENT**\n...",
    "apache-2.0": "\n                      Apache License\n                Version 2.0, January 2004\n",
    "mit": "MIT License\n\nCopyright (c) ...",
}
NOTICES = {
    "llama2": "Llama 2 is licensed under the LLAMA 2 Community License, "
    "Copyright (c) Meta Platforms, Inc. All Rights Reserved.",
    "llama3": "Meta Llama 3 is licensed under the Meta Llama 3 Community License, "
    "Copyright © Meta Platforms, Inc. All Rights Reserved.",
    **{
        f"llama3.{minor}": f"Llama 3.{minor} is licensed under the Llama 3.{minor} Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved."
        for minor in (1, 2, 3)
    },
}
NAMES = {"llama2": "my-model", "llama3": "Llama-3-8B-gsm8k", "apache-2.0": "my-model", "mit": "my-model"}


def released(
    root: Path, base: Path, name: str = "my-model", **config: Any
) -> tuple[Outcome, dict[str, Any], list[Token]]:
    outcome = release(make_run(root / "run", model={"path": str(base)}, **config), root / "out" / name)
    return outcome, *read_card(outcome.folder)


@pytest.mark.parametrize("key", TEXTS)
@pytest.mark.parametrize("by", ["card", "text"])
def test_each_licence_goes_along_with_what_it_asks(tmp_path: Path, key: str, by: str) -> None:
    base = make_base(
        tmp_path / "base", licence=key if by == "card" else None, LICENSE__txt=TEXTS[key], USE_POLICY__md="be good"
    )
    name = NAMES.get(key, "Llama-8B-gsm8k")
    outcome, matter, tokens = released(tmp_path, base, name)
    assert matter["license"] == key
    assert matter["base_model"] == "base"
    for file in ("LICENSE.txt", "USE_POLICY.md"):
        assert (outcome.folder / file).read_bytes() == (base / file).read_bytes()
    text = text_of(section(tokens, "Licence"))
    assert "LICENSE.txt, USE_POLICY.md" in text
    if key in NOTICES:
        assert (outcome.folder / "NOTICE").read_text(encoding="utf-8") == f"{NOTICES[key]}\n"
        assert NOTICES[key] in text
        assert len(links(section(tokens, "Licence"))) == 1
    else:
        assert not (outcome.folder / "NOTICE").exists()
        assert links(section(tokens, "Licence")) == []
    opening = text_of(section(tokens, name))
    assert ("Built with Meta Llama 3" in opening) == (key == "llama3")
    assert ("Built with Llama" in opening) == (key in ("llama3.1", "llama3.2", "llama3.3"))
    assert ("weights were changed" in text) == (key == "apache-2.0")


@pytest.mark.parametrize(
    ("key", "name", "allowed"),
    [
        ("llama3", "Llama-3-8B-gsm8k", True),
        ("llama3", "Llama3-gsm8k", True),
        ("llama3", "Llama_3.gsm8k", True),
        ("llama3", "Llama-gsm8k", False),
        ("llama3", "llama-3-gsm8k", False),
        ("llama3", "gsm8k-Llama-3", False),
        ("llama3.1", "Llama-gsm8k", True),
        ("llama3.2", "gsm8k", False),
        ("llama3.3", "Meta-Llama-3.3", False),
        ("llama2", "gsm8k", True),
        ("apache-2.0", "gsm8k", True),
    ],
)
def test_the_name_is_as_the_licence_wants_it(tmp_path: Path, key: str, name: str, allowed: bool) -> None:
    base = make_base(tmp_path / "base", licence=key, LICENSE=TEXTS[key])
    if allowed:
        assert released(tmp_path, base, name)[0].folder.name == name
        return
    begins = "Llama 3" if key == "llama3" else "Llama"
    with pytest.raises(UserError, match=rf'called {name}(.|\n)*begins with "{begins}"(.|\n)*Llama-'):
        released(tmp_path, base, name)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", TEXTS)
@pytest.mark.parametrize("instead", [None, "USE_POLICY", "other"])
def test_a_licence_without_its_text_is_refused(tmp_path: Path, key: str, instead: str | None) -> None:
    other = TEXTS["mit" if key != "mit" else "llama2"]
    files = {None: {}, "USE_POLICY": {"USE_POLICY": TEXTS[key]}, "other": {"LICENSE": other}}[instead]
    base = make_base(tmp_path / "base", licence=key, **files)
    with pytest.raises(
        UserError, match=r"has no LICENSE file with the text of the(.|\n)*put the text there as LICENSE"
    ):
        released(tmp_path, base, NAMES.get(key, "Llama-x"))


@pytest.mark.parametrize("name", ["Llama-2-7b-hf", "Meta-Llama-3-8B", "Llama-3.1-8B", "my-llama3.2", "LLaMA2_13b"])
def test_a_name_alone_is_enough_to_ask_for_the_licence(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"its name suggests so(.|\n)*LICENSE(.|\n)*`license:`"):
        released(tmp_path, make_base(tmp_path / name), "Llama-3-x")


@pytest.mark.parametrize("name", ["TinyLlama-1.1B", "open_llama_3b", "sheared-llama-2.7B", "Mistral-7B", "Qwen2.5-7B"])
def test_a_name_that_says_nothing_is_not_taken_for_a_licence(tmp_path: Path, name: str) -> None:
    outcome, matter, tokens = released(tmp_path, make_base(tmp_path / name))
    assert (outcome.licence, matter["license"]) == (None, "unknown")
    assert "is not known" in text_of(section(tokens, "Licence"))


def test_a_name_of_another_family_is_not_llamas(tmp_path: Path) -> None:
    files = MODEL_FILES | {"config.json": '{"model_type": "qwen2"}'}
    assert released(tmp_path, make_base(tmp_path / "Qwen-like-Llama-3-8B"), files=files)[0].licence is None


@pytest.mark.parametrize(
    ("matter", "said"),
    [
        ("license: cc-by-nc-4.0", "cc-by-nc-4.0"),
        ("license: other\nlicense_name: qwen-research", "qwen-research"),
        ("license: other", "other"),
        ("license: [mit, apache-2.0]", "several licences"),
        ("license: {a: b}", "several licences"),
        ("license: !!python/object/apply:os.system [false]", None),
        ("license: [", None),
        ("- a list", None),
        (f"license: {'[' * 5000}", None),
    ],
)
def test_a_licence_that_is_not_known_is_left_to_the_user(tmp_path: Path, matter: str, said: str | None) -> None:
    base = make_base(tmp_path / "base", README__md=f"---\n{matter}\n---\ntext", LICENSE="Some terms.", NOTICE="Ours.")
    outcome, front, tokens = released(tmp_path, base)
    text = text_of(section(tokens, "Licence"))
    assert (outcome.licence, front["license"]) == (None, "unknown")
    assert "has to find out what that licence asks, and decide" in text
    assert ("card calls it" in text, said is None or said in text) == (said is not None, True)
    assert (outcome.folder / "LICENSE").read_text() == "Some terms."
    assert (outcome.folder / "NOTICE").read_text() == "Ours."


@pytest.mark.parametrize(
    "matter", ["license: other\nlicense_name: llama3.1", "license: [llama3.1]", "license: LLaMA3.1"]
)
def test_ways_to_name_a_known_licence(tmp_path: Path, matter: str) -> None:
    base = make_base(tmp_path / "base", README__md=f"---\r\n{matter}\r\n---\r\n", LICENSE=TEXTS["llama3.1"])
    assert released(tmp_path, base, "Llama-x")[1]["license"] == "llama3.1"


@pytest.mark.parametrize(
    ("notice", "added"),
    [
        (f"About us.\n{NOTICES['llama2'].replace(' the ', ' the' + chr(10))}", False),
        (NOTICES["llama2"].replace("(c)", "©"), False),
        ("Something else.", True),
    ],
)
def test_the_mandatory_notice_is_added_where_it_is_missing(tmp_path: Path, notice: str, added: bool) -> None:
    base = make_base(tmp_path / "base", licence="llama2", LICENSE=TEXTS["llama2"], Notice__txt=notice)
    folder = released(tmp_path, base)[0].folder
    assert (folder / "Notice.txt").read_text(encoding="utf-8") == notice
    assert (folder / "NOTICE.llama").exists() == added


def test_a_link_to_elsewhere_does_not_publish_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a key")
    base = make_base(tmp_path / "base", licence="mit")
    (base / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"is a link to .*secret"):
        released(tmp_path, base)


@pytest.mark.parametrize(("content", "said"), [(b"\x80\x04\0", "is no text"), (b" " * (1 << 20) + b" ", "1 MiB")])
def test_what_is_called_a_licence_must_be_a_text(tmp_path: Path, content: bytes, said: str) -> None:
    base = make_base(tmp_path / "base")
    (base / "LICENSE.pkl").write_bytes(content)
    with pytest.raises(UserError, match=said):
        released(tmp_path, base)


def test_a_folder_of_the_hubs_cache_is_known_by_its_name_there(tmp_path: Path) -> None:
    """Its files are links to blobs beside the snapshots."""
    repository = tmp_path / "models--meta-llama--Llama-2-7b-hf"
    base, blobs = repository / "snapshots" / "0123abcd", make_base(repository / "blobs", aa=TEXTS["llama2"], bb="text")
    base.mkdir(parents=True)
    (base / "LICENSE.txt").symlink_to(Path("../../blobs/aa"))
    (base / "USE_POLICY.md").symlink_to(Path("../../blobs/bb"))
    outcome, matter, _ = released(tmp_path, base)
    assert (matter["base_model"], matter["license"]) == ("meta-llama/Llama-2-7b-hf", "llama2")
    assert (outcome.folder / "LICENSE.txt").read_bytes() == (blobs / "aa").read_bytes()
    assert not (outcome.folder / "LICENSE.txt").is_symlink()


def test_a_base_model_that_is_gone_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.path = .*gone is no folder here"):
        released(tmp_path, tmp_path / "gone")


def recipe_and_run(root: Path, base: Path) -> tuple[Path, Path]:
    """A run whose M_0 is the last model of another run beside it, which began with `base`."""
    recipe = make_run(root, model={"path": str(base)}).rename(root / "recipe")
    run_dir = make_run(root, model={"recipe": "recipe.yaml"})
    imported = run_dir / "iteration-00" / "checkpoint-megatron" / MANIFEST
    write_json(imported, read_json(imported) | {"inputs": {"model_folder": manifest_digest(checkpoint_of(recipe, 2))}})
    return recipe, run_dir


def test_a_licence_is_inherited_through_a_recipe(tmp_path: Path) -> None:
    base = make_base(tmp_path / "Llama-3.1-8B", licence="llama3.1", LICENSE=TEXTS["llama3.1"])
    _, run_dir = recipe_and_run(tmp_path / "runs", base)
    with pytest.raises(UserError, match='begins with "Llama"'):
        release(run_dir, tmp_path / "gsm8k")
    matter, tokens = read_card(release(run_dir, tmp_path / "Llama-gsm8k").folder)
    assert (matter["license"], matter["base_model"]) == ("llama3.1", "Llama-3.1-8B")
    assert "by way of a recipe" in text_of(section(tokens, "Llama-gsm8k"))


def test_a_recipe_that_is_not_at_hand_leaves_the_licence_open(tmp_path: Path) -> None:
    recipe, run_dir = recipe_and_run(
        tmp_path / "runs", make_base(tmp_path / "base", licence="mit", LICENSE="MIT License")
    )
    recipe.rename(tmp_path / "elsewhere")
    outcome = release(run_dir, tmp_path / "model")
    matter, tokens = read_card(outcome.folder)
    assert (outcome.licence, matter["license"]) == (None, "unknown")
    assert "the run that made the base model was not at hand" in text_of(section(tokens, "Licence"))


def test_random_weights_inherit_nothing(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, model={"random": {"tokenizer": {"kind": "characters"}}})
    matter, tokens = read_card(release(run_dir, tmp_path / "model").folder)
    assert "license" not in matter
    assert "Whoever publishes it has to say under which one." in text_of(section(tokens, "Licence"))
