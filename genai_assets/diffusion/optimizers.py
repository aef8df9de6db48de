"""The optimizers of a run: AdamW, and Muon for the matrices that a transformer is mostly made of.

Belongs here: which weights go by which rule. When a step is taken is ``training``; how large it is, the run's config.
"""

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from genai_assets.diffusion.config import TrainingConfig

if TYPE_CHECKING:
    import torch


def build_optimizer(
    parameters: "Mapping[str, torch.nn.Parameter]", config: TrainingConfig, hidden_matrices: Collection[str] = ()
) -> "torch.optim.Optimizer":
    """The optimizer that the run's config names.

    AdamW (Loshchilov and Hutter 2019): matrices decay, norms and biases do not. Muon (Jordan et al. 2024) moves
    ``hidden_matrices`` by their momentum made orthogonal, scaled so that a step is as large as AdamW's would be (Liu et
    al. 2025); all others go by AdamW. So one learning rate serves both.

    Args:
        parameters: those that learn, by name.
        config: the run.
        hidden_matrices: names of the weights of attention and feed-forward layers.

    Raises:
        ValueError: Muon is asked for and there is no hidden matrix.
    """
    import torch

    chosen = set(hidden_matrices) if config.optimizer == "muon" else set()
    hidden = [value for name, value in parameters.items() if name in chosen]
    rest = [value for name, value in parameters.items() if name not in chosen]
    groups = [
        {"params": [value for value in rest if value.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [value for value in rest if value.ndim < 2], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    if config.optimizer == "adamw":
        return adam
    if not hidden:
        raise ValueError("Muon moves the matrices of attention and feed-forward layers, and there are none: use adamw")
    muon = torch.optim.Muon(
        hidden,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        momentum=_MOMENTUM,
        adjust_lr_fn="match_rms_adamw",
    )
    return _joined(muon, adam)


_MOMENTUM = 0.95


def _joined(*optimizers: "torch.optim.Optimizer") -> "torch.optim.Optimizer":
    """Several optimizers of different weights as one, sharing its groups and its state."""
    import torch

    class Joined(torch.optim.Optimizer):
        def __init__(self) -> None:
            groups = [group for part in optimizers for group in part.param_groups]
            super().__init__(groups, {})
            self._share()

        def _share(self) -> None:
            groups = list(self.param_groups)
            for part in optimizers:
                part.param_groups, groups = groups[: len(part.param_groups)], groups[len(part.param_groups) :]
                part.state = self.state

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict(state_dict)
            self._share()  # torch puts new groups and a new state in place

        def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            loss = closure() if closure else None
            for part in optimizers:
                part.step()
            return loss

    return Joined()
