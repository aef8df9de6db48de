"""How good the pictures are: what one looks at before choosing a base model or a way to draw, minutes to hours each.

Belongs here: commands that measure quality against stated goals or as a curve, and draw sheets to look at. They are run
by name (``python -m benchmarks.quality.NAME``); what is held against a peer is in ``benchmarks`` itself.
"""
