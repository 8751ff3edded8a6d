"""Judging samples by their final answers: the reward of the paper's section 2."""
