"""What a precompute and training on it will take, before anything is spent."""
