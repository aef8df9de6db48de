"""Distillation: a student that draws in a few steps without guidance what its teacher draws in many with it.

``levels`` says at which noise levels the student draws, ``trajectories`` has the teacher draw by way of these,
``segments`` makes batches of what lies between two of them, and ``distil`` goes from a teacher's folder to a student's.
The training loop is the one that all models here are trained by.
"""
