r"""FT: factor transfer; the student translates into the compressed code of a teacher's feature.

Paper: Kim, Park, Kwak: Paraphrasing Complex Network: Network Compression via Factor Transfer,
    NeurIPS 2018 (arXiv:1802.04977).

Idea: An autoencoder learns, without labels, to say in fewer channels what the teacher's feature
    holds. Its frozen encoder, the paraphraser, gives the teacher's factor; a translator, trained
    with the student, gives the student's. Factors of unit length are compared.

Equation:

.. math::

    L = w\,\frac{1}{B}\sum_b \frac{1}{\sqrt{n}}
        \left\|\frac{f^s_b}{\|f^s_b\|_2} - \frac{f^t_b}{\|f^t_b\|_2}\right\|_1,\quad
        f^s = Trans(F^s),\; f^t = Para(F^t),\; n = dim(f^t_b)

Taps: ``penult`` of both (``student_tap``, ``teacher_tap``); the finer of the two grids is averaged
    to the coarser.

Provenance:
- stated: paraphraser trained on the teacher alone and then frozen, translator trained with the
  student, factors of unit length, L1.
- code: three 3×3(×3) convolutions each with LeakyReLU 0.1, Kaiming start, batch normalisation in
  the translator only (mmrazor, ACF-BCKD).
- ours: factors of half the teacher's channels; 200 batches of pre-fitting with Adam at 1e-3 on the
  mean squared error; weight 1; the division by the root of n.

Deviations: ACF-BCKD never trains the paraphraser, whose random encoder is frozen at once:
    ``prefit_steps: 0`` is that row, with ``rate: 1``. Its mean over the n elements of unit vectors
    shrinks with the root of n (3e-4 for 128 channels at 48³, next to a Dice loss of order 1):
    ``reduction: mean``. The default is in [0, 2] for any patch. Regions make no difference.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.discover import Field, Parameters
from kdpipe.methods.base import Context, Distiller, Outputs, Progress
from kdpipe.terms.adapters import batch_norm, convolution
from kdpipe.terms.features import common_size, pool_to
from kdpipe.terms.weights import weighted

logger = logging.getLogger(__name__)


class Params(Parameters):
    """Taps, size of the factors, pre-fitting, weight and the way of averaging."""

    student_tap: str = Field("penult", description="logical name of the student's feature")
    teacher_tap: str = Field("penult", description="logical name of the teacher's feature")
    rate: float = Field(
        0.5, gt=0, le=4, description="channels of the factors over those of the teacher's feature"
    )
    prefit_steps: int = Field(
        200, ge=0, description="batches that train the paraphraser; 0 leaves it random"
    )
    prefit_rate: float = Field(1e-3, gt=0, description="learning rate of the pre-fitting")
    weight: float = Field(1.0, ge=0)
    reduction: Literal["root", "mean"] = Field(
        "root", description="L1 over the root of the number of elements; published: over the number"
    )


def factor_network(spatial_dims: int, inputs: int, outputs: int, norm: bool) -> nn.Sequential:
    """Return three convolutions with LeakyReLU, the second of which changes the channels.

    Args:
        spatial_dims: 2 or 3.
        inputs: channels of the feature.
        outputs: channels of the factor.
        norm: whether batch normalisation follows each convolution.
    """
    layers: list[nn.Module] = []
    for before, after in ((inputs, inputs), (inputs, outputs), (outputs, outputs)):
        layer = convolution(spatial_dims, before, after)
        nn.init.kaiming_normal_(layer.weight, a=0.1, mode="fan_out")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        layers.append(layer)
        layers += [batch_norm(spatial_dims, after)] if norm else []
        layers.append(nn.LeakyReLU(0.1))
    return nn.Sequential(*layers)


def factor_loss(student: Tensor, teacher: Tensor, reduction: str = "root") -> Tensor:
    """Return the L1 distance of two factors of unit length, mean over the batch.

    Args:
        student: factor ``(B, c, *s)``; both are averaged to the coarser of the grids.
        teacher: factor ``(B, c, *S)``; gets no gradient.
        reduction: ``root`` divides the sum by the root of the number of elements, which gives a
            value in [0, 2]; ``mean`` divides by the number.
    """
    size = common_size(student, teacher)
    ours = pool_to(student, size).flatten(1)
    theirs = pool_to(teacher.detach(), size).flatten(1)
    # 1e-6, not 1e-12: a factor of zeros must not send a gradient of 1e12 back
    distance = (F.normalize(ours, eps=1e-3) - F.normalize(theirs, eps=1e-3)).abs().mean()
    return distance if reduction == "mean" else distance * ours.shape[1] ** 0.5


def fit_autoencoder(
    encoder: nn.Module, decoder: nn.Module, features: Iterable[Tensor], learning_rate: float
) -> list[float]:
    """Train both, one step of Adam a feature, and freeze the encoder.

    Args:
        encoder: feature -> factor.
        decoder: factor -> feature.
        features: ``(B, c, *S)``, of any float type.
        learning_rate: of Adam.

    Returns:
        The squared errors of all steps, each relative to its feature's mean square.
    """
    encoder.requires_grad_(True)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=learning_rate)
    errors: list[Tensor] = []
    for given in features:
        feature = given.detach().float()
        with torch.enable_grad(), torch.autocast(feature.device.type, enabled=False):
            error = F.mse_loss(decoder(encoder(feature)), feature)
            error = error / feature.square().mean().clamp_min(1e-12)
            optimizer.zero_grad(set_to_none=True)
            error.backward()
        optimizer.step()
        errors.append(error.detach())
    optimizer.zero_grad(set_to_none=True)
    encoder.requires_grad_(False)
    return [error.item() for error in errors]


class Method(Distiller):
    """Factor transfer from one teacher feature through a pre-fitted paraphraser."""

    floor: ClassVar[float | None] = None  # translator and paraphraser stand between the two

    def __init__(self, params: Any, context: Context):
        super().__init__(params, context)
        student, teacher = self.compare(params.student_tap, params.teacher_tap)
        dims, factors = context.spatial_dims, max(1, round(params.rate * teacher.channels))
        self.channels, self.factors = teacher.channels, factors
        self.translator = factor_network(dims, student.channels, factors, norm=True)
        self.paraphraser = factor_network(dims, teacher.channels, factors, norm=False)
        # never the student's optimiser's: it is built before the pre-fitting
        self.paraphraser.requires_grad_(False)

    def prefit_steps(self) -> int:
        """Batches for the paraphraser."""
        return self.params.prefit_steps if self.params.weight else 0

    def prefit(self, teacher: Iterable[Outputs]) -> None:
        """Train the paraphraser to reconstruct the teacher's feature, then freeze it."""
        device = next(self.paraphraser.parameters()).device
        dims = self.context.spatial_dims
        decoder = factor_network(dims, self.factors, self.channels, norm=False).to(device)
        features = (outputs.features[self.params.teacher_tap] for outputs in teacher)
        errors = fit_autoencoder(self.paraphraser, decoder, features, self.params.prefit_rate)
        if errors:
            # an output of zeros has the error 1
            learnt = errors[-1] < min(1.0, errors[0])
            logger.log(
                logging.INFO if learnt else logging.WARNING,
                "ft: relative reconstruction error of the paraphraser %.3f, after %d steps %.3f%s",
                errors[0],
                len(errors),
                errors[-1],
                "" if learnt else "; it has not learnt: lower prefit_rate or raise prefit_steps",
            )

    def losses(
        self, student: Outputs, teacher: Outputs, target: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return the term ``factor``."""
        params = self.params

        def loss() -> Tensor:
            with torch.no_grad():
                theirs = self.paraphraser(teacher.features[params.teacher_tap])
            ours = student.features[params.student_tap]
            ours = pool_to(ours, common_size(ours, theirs))  # fewer voxels before more channels
            return factor_loss(self.translator(ours), theirs, params.reduction)

        return weighted(factor=(params.weight, loss))
