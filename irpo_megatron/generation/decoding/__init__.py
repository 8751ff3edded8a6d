"""Decoding on plain torch: continuous batching, keys and values in pages, every choice as exact arithmetic makes it.

`batch.Batch` admits requests, steps, and hands out what has ended. The backend `transformers` is the only user: nothing
here is imported before a model is loaded.
"""
