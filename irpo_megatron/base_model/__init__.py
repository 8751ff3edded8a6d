"""Small Llamas with random weights, written without torch: the start of demonstrations and tests."""
