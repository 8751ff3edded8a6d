"""What a model is worth: accuracy on test problems (paper, section 3), and the choice of a checkpoint."""
