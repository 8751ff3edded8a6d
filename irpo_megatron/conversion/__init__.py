"""Hugging Face to Megatron and back: name tables read in both directions, and a judgement by logits."""
