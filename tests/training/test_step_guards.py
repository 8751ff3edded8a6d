"""What stops training before a wrong update."""

from __future__ import annotations

import math

import pytest

from irpo_megatron.training.step import ReferenceMismatch, require_ln2


@pytest.mark.parametrize("dpo", [math.log(2), math.log(2) + 9e-6, math.log(2) - 9e-6])
def test_ln_2_passes(dpo: float) -> None:
    require_ln2(dpo)


@pytest.mark.parametrize("dpo", [math.log(2) + 2e-5, 0.68, math.nan])
def test_anything_else_means_that_the_reference_is_another_model(dpo: float) -> None:
    with pytest.raises(ReferenceMismatch, match=r"must be ln 2 = 0\.6931472 within 1e-05"):
        require_ln2(dpo)
