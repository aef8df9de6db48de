"""How a denoiser computes while it draws, how near that comes to exact arithmetic, and which noise scheduler leads it.

Belongs here: ways to compute (``backends``, ``openvino_denoiser``), their parity with fp32 (``parity``), stock noise
schedulers by name (``noise_schedulers``). Many prompts in batches are ``diffusion.sampling``; what differs between
families is ``diffusion.families``.
"""
