"""Weights compared bit for bit."""

import hashlib
from typing import Any


def digest_weights(denoiser: Any) -> dict[str, str]:
    """SHA-256 of every tensor's bytes, by name."""
    return {
        name: hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest()
        for name, value in denoiser.state_dict().items()
    }
