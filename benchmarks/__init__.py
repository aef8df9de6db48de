"""How fast the project is, each time beside a peer: the same work done the usual way, or by another library.

Belongs here: one module a question, ``benchmarks/NAME.py``, run by ``benchmarks.run``. The last line a module prints is
one JSON object: ``name`` (what is counted, with its unit), ``ours`` and ``peer`` (numbers in that unit), ``ratio`` (how
many times better ours is), ``goal`` (the ratio to reach), ``quality`` (how it was seen that both did the same work).
"""
