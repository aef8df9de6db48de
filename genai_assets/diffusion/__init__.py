"""Training and drawing: base models, the training cache, the loop, checkpoints and sampling.

Knows torch and diffusers (imported where used), and nothing of Dagster, MLflow or BentoML: the loop reports through
``on_step``.
"""
