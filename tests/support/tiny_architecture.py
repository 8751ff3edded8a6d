"""The shape of a model so small that building one costs nothing: an odd vocabulary, two query heads to one key."""

from irpo_megatron.engine.architecture import Architecture

TINY = Architecture(
    layers=1,
    hidden_size=8,
    heads=2,
    kv_heads=1,
    head_size=4,
    ffn_size=12,
    vocabulary=11,
    context=32,
    rope_base=1e4,
    norm_epsilon=1e-5,
    tied_embeddings=False,
)
