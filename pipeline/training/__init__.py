"""Training: the configuration, the engines that take a step, the loop, and checkpoints that survive."""
