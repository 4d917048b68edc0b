"""The optimiser: Muon for the layers' matrices, AdamW for the embedding and the norms."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return the nearest semi-orthogonal matrices of a stack, by a quintic Newton-Schulz iteration."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_STEPS):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.transpose(1, 2) if tall else x).to(matrices.dtype)


class Muon:
    """Momentum, orthogonalised per matrix; matrices of one shape are handled as one stack."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float, decay: float) -> None:
        """Group the parameters by shape."""
        groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            groups[parameter.shape].append(parameter)
        self.groups = [(group, torch.zeros_like(torch.stack(list(group)))) for group in groups.values()]
        self.lr, self.momentum, self.decay = lr, momentum, decay

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Update every matrix, the learning rate multiplied by `scale`."""
        lr = self.lr * scale
        for group, buffer in self.groups:
            gradient = torch.stack([p.grad for p in group if p.grad is not None])
            buffer.lerp_(gradient, 1 - self.momentum)
            update = orthogonalise(gradient.lerp(buffer, self.momentum))
            factor = max(1.0, update.shape[1] / update.shape[2]) ** 0.5
            tensors = list(group)
            torch._foreach_mul_(tensors, 1 - lr * self.decay)
            torch._foreach_add_(tensors, list(update.unbind(0)), alpha=-lr * factor)


class Optimiser:
    """Muon and AdamW driven by one schedule."""

    def __init__(self, model: nn.Module, muon_lr: float, adam_lr: float, decay: float) -> None:
        """Share the parameters out."""
        named = list(model.named_parameters())
        matrices = [p for name, p in named if p.dim() == 2 and "embed" not in name]
        others = [p for name, p in named if p.dim() != 2 or "embed" in name]
        self.muon = Muon(matrices, muon_lr, momentum=0.95, decay=decay)
        self.adam = torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0)
        self.adam_lr = adam_lr

    def step(self, scale: float) -> None:
        """Take one step and clear the gradients."""
        self.muon.step(scale)
        for group in self.adam.param_groups:
            group["lr"] = self.adam_lr * scale
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        for group, _ in self.muon.groups:
            for parameter in group:
                parameter.grad = None
