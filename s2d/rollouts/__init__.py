"""Rollouts: one protocol, two engines (transformers embedded, vLLM on GPUs), and the stored teacher rollouts."""
