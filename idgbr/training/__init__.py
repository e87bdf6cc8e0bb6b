"""The training loop, what feeds it, its checkpoints, and how several processes share it."""
