"""The state of a buffer of several buckets lies, when it is saved, where its parameters are looked for."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from irpo_megatron.engine.bucket_padding import keep_bucket_padding

# Five numbers and three of filling; four numbers that fill their bucket; one number and three of filling.
BUFFER = SimpleNamespace(
    numel=16,
    buckets=[
        SimpleNamespace(offset=0, numel_unpadded=5),
        SimpleNamespace(offset=8, numel_unpadded=4),
        SimpleNamespace(offset=12, numel_unpadded=1),
    ],
)


def test_state_lies_as_in_the_buffer() -> None:
    packed = torch.arange(1.0, 11.0)
    options: list[bool] = []

    def gather(*, empty_data: bool) -> dict[object, object]:
        options.append(empty_data)
        tensors = {"param": packed, "exp_avg": -packed, "numel_unpadded": 10}
        return {"buckets_coalesced": True, 0: {torch.float32: tensors}}

    part = SimpleNamespace(get_parameter_state_dp_zero=gather, buffers=[BUFFER])
    keep_bucket_padding(SimpleNamespace(chained_optimizers=[part]))
    tensors = part.get_parameter_state_dp_zero(empty_data=True)[0][torch.float32]
    expected = [1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 0.0, 0.0, 6.0, 7.0, 8.0, 9.0, 10.0, 0.0, 0.0, 0.0]
    assert tensors["param"].tolist() == expected
    assert tensors["exp_avg"].tolist() == [-number for number in expected]
    assert tensors["numel_unpadded"] == 10
    assert options == [True]
