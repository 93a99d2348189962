"""What the log says of the loss, and what is kept of one that is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from kdpipe.atomic import atomic_path
from kdpipe.engine import parallel
from kdpipe.errors import TrainingDiverged


def diverged_file(state: Path) -> Path:
    """Return where the batch is kept that the loss was not finite for, beside the checkpoints."""
    return state.with_name("diverged.pt")


def check_finite(
    loss: Tensor,
    terms: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    step: int,
    file: Path,
) -> None:
    """Keep the batch and the terms in `file` if the loss is not finite.

    ``torch.load(file)`` gives ``step``, ``terms`` (floats by name) and ``batch`` (tensors).

    Raises:
        TrainingDiverged: it is not finite.
    """
    if torch.isfinite(loss):
        return
    whole = {name: parallel.gather(value) for name, value in batch.items()}
    values = {name: float(value.item()) for name, value in terms.items()}
    kept = f"the batch is kept in {file}"
    try:
        with atomic_path(file) as temporary:
            tensors = {name: value.detach().cpu() for name, value in whole.items()}
            torch.save({"step": step, "terms": values, "batch": tensors}, temporary)
    except (OSError, RuntimeError) as error:  # not what the person has to know first
        kept = f"the batch could not be kept in {file} ({error})"
    raise TrainingDiverged(
        f"the loss is not finite at step {step} ({described(values)}); lower the learning rate "
        f"or the method's weight, or train in fp32; {kept}"
    )


def norms_of(terms: Mapping[str, Tensor], network: nn.Module) -> dict[str, float]:
    """Return the L2 norm of each term's gradient on the network's parameters."""
    weights = [p for p in network.parameters() if p.requires_grad]
    norms = {}
    for name, term in terms.items():
        gradients = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
        used = [gradient for gradient in gradients if gradient is not None]
        found = [gradient.norm() for gradient in parallel.summed(used)]
        norms[name] = torch.stack(found).norm().item() if found else 0.0
    return norms


def compared(terms: dict[str, Tensor], norms: dict[str, float]) -> str:
    """Return each term with the norm of its gradient, and how it compares."""
    against = norms["segmentation"]
    shown = []
    for name, term in terms.items():
        text = f"{name} {term.item():.4g} (gradient {norms[name]:.3g}"
        times = f", {norms[name] / against:.2g} times" if name != "segmentation" and against else ""
        shown.append(f"{text}{times})")
    return ", ".join(shown)


def described(means: dict[str, float]) -> str:
    """Return names with values."""
    return ", ".join(f"{name} {value:.4g}" for name, value in means.items())
