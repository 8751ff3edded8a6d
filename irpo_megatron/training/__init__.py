"""Reference log-probs, batches of pairs, the optimizer step and the loop over steps."""
