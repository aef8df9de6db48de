"""Serving: the model behind HTTP, what it was asked, and what people thought of the pictures.

The only room that knows BentoML. The request log knows nothing of it and may be read from anywhere.
"""
