"""How good a model's pictures are, and whether it may replace the champion.

Belongs here: features of pictures and captions, the index that keeps them, metrics, the evaluation report, and the
gate's decision. Nothing here draws a picture or knows where a model lies: callers hand in arrays.
"""
