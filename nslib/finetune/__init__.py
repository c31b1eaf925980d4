"""Nullspace finetuning (Algorithm 1), its baselines and its controls: one trainer, one recipe, many objectives."""
