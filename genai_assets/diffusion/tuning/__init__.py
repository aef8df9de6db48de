"""Tuning: which settings of a training give a lower validation loss, found by short trainings.

What may vary is ``space``, one short training ``trial``, the search ``study``, and what a person gets to review
``proposal``. A proposal is never used by itself.
"""
