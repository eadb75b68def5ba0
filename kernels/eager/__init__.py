"""Each operation in vectorised PyTorch, fast on a CPU, for every device that Triton does not reach."""
