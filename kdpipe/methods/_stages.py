"""Which stages of two networks are compared, and how much each of them counts."""

from __future__ import annotations

from collections.abc import Sequence

from kdpipe.errors import ConfigError
from kdpipe.methods.base import Context, Side

Pairs = list[tuple[str, str]]


def encoder_stages(context: Context, side: Side) -> tuple[str, ...]:
    """Return a network's encoder stages, finest first, and its bottleneck; may be none."""
    known = context.student if side == "student" else context.teacher
    coarsest = ("bottleneck",) if "bottleneck" in known else ()
    return (*context.encoders(side), *coarsest)


def decoder_stages(context: Context, side: Side) -> tuple[str, ...]:
    """Return a network's decoder stages before the logits, coarsest first; may be none."""
    known = context.student if side == "student" else context.teacher
    return tuple(stage for stage in context.decoders(side) if not known[stage].is_logits)


def encoder_pairs(context: Context, bottleneck: bool = True) -> Pairs:
    """Return (student tap, teacher tap) of the encoder stages that both have, finest first.

    Args:
        context: the taps of both networks.
        bottleneck: whether the coarsest stage is one of them.
    """
    coarsest = ("bottleneck",) if bottleneck else ()
    return [pair for pair in context.stage_pairs() if pair[0].startswith(("enc", *coarsest))]


def chosen_pairs(
    method: str, student_taps: Sequence[str], teacher_taps: Sequence[str], default: Pairs
) -> Pairs:
    """Return the pairs that parameters name, or `default` where they name none.

    Args:
        method: name for the messages.
        student_taps: finest first.
        teacher_taps: as many as `student_taps`.
        default: pairs for two empty lists.

    Raises:
        ConfigError: the lists differ in length, or there is no pair at all.
    """
    if len(student_taps) != len(teacher_taps):
        raise ConfigError(
            f"{method}: {len(student_taps)} student_taps and {len(teacher_taps)} teacher_taps; "
            "name as many of the one as of the other"
        )
    pairs = list(zip(student_taps, teacher_taps, strict=True)) or default
    if not pairs:
        raise ConfigError(
            f"{method}: student and teacher have no stage of the same name; name their features "
            "in student_taps and teacher_taps"
        )
    return pairs


def deepest_weights(published: Sequence[float], stages: int) -> list[float]:
    """Return one weight a stage, finest first, that sum to 1.

    The deepest stage has the last of the published weights. A network of fewer stages leaves out
    the first ones, a deeper network repeats the first.

    Args:
        published: weights >= 0, finest first; the last > 0.
        stages: how many there are, >= 1.
    """
    missing = max(0, stages - len(published))
    weights = [published[0]] * missing + list(published[-stages:])
    return [weight / sum(weights) for weight in weights]


def decaying_weights(ratio: float, stages: int) -> list[float]:
    """Return ``ratio^k`` for stage ``k = 0, 1, ...``, finest first, scaled to a sum of 1."""
    powers = [ratio**stage for stage in range(stages)]
    return [power / sum(powers) for power in powers]
