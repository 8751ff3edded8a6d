"""Rows of a data set on the Hugging Face Hub: the only code of the tasks that may use the network."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable

from irpo_megatron.errors import UserError

HUB_PREFIX = "hub:"
_SOURCE = re.compile(r"hub:(?P<name>[^:\s/]+/[^:\s/]+)(?::(?P<config>[^:\s]*))?(?::(?P<split>[^:\s]+))?")


def rows_from_hub(source: str, *, split: str) -> Iterable[object]:
    """The rows of `hub:owner/name[:config][:split]`; the Hub's split is `split` unless the source names one.

    An empty config (`hub:owner/name::test`) leaves the choice to the data set.

    Raises:
        UserError: the source is not of that form, `datasets` is not installed, or it cannot load the data set.
    """
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise UserError(
            f"source {source!r}",
            "a Hub data set is written hub:owner/name[:config][:split]",
            "for example hub:openai/gsm8k:main:train",
        )
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise UserError(
            f"source {source!r}, but the package datasets is not installed",
            "data sets on the Hub are read through it",
            'pip install "irpo-megatron[hub]", or download the files and give their path',
        ) from error
    hub_split = match["split"] or split
    try:
        # Said aloud because releases before 4.0 can run a data set's own script.
        rows: Iterable[object] = datasets.load_dataset(
            match["name"], match["config"] or None, split=hub_split, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"source {source!r}, split {hub_split!r}: {error}",
            "the data set, its config and its split must exist, and the Hub be within reach",
            "name them as hub:owner/name:config:split, or download the files and give their path",
        ) from error
    return rows
