"""Log-probs from vocab-parallel logits, DPO and NLL: pure functions of tensors and explicit process groups."""
