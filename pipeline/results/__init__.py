"""What docs/results.md is made from: recorded figures of experiments, each with the command that gives it again."""
