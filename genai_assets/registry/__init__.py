"""Which model is champion, and what is known of every model: the pointer, MLflow, the model card.

Belongs here: the champion pointer and its history, experiment tracking and the model registry (the only room that
knows MLflow), model cards. Whether a challenger should be promoted is decided in ``evaluation``.
"""
