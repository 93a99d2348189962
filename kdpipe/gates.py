"""What a person has to do before a data set can be had, told before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdpipe.cards import Card
from kdpipe.sources import MIRROR, Archive


def closed_gate(card: Card, files: Sequence[Archive], archives: Path, mirror: bool) -> str | None:
    """Return what has to be done to get the files of a data set, None if nothing.

    Args:
        card: of the data set.
        files: that it needs, one a file; of the data set that it is derived from, if it is.
        archives: folder where a person puts them.
        mirror: whether the user has a mirror, which is asked first and has perhaps all.
    """
    if card.access.mode == "open" or mirror:
        return None
    missing = [file for file in files if not (archives / file.name).is_file()]
    if files and not missing:  # without a list of files, only a folder of the user will do
        return None
    lines = [f"data set {card.id!r} has to be fetched by hand ({card.licence.spdx}):"]
    lines += [f"  {number}. {step}" for number, step in enumerate(card.access.steps, start=1)]
    for file in missing:
        lines += describe(file, archives)
    lines += terms(card)
    lines.append(
        f"Files that are unpacked already: data_source: {{{card.id}: FOLDER}}. A mirror of your "
        f"own, a folder or an address: the environment variable {MIRROR}."
    )
    if card.access.alternatives:
        lines.append(f"Open data with like labels: {', '.join(card.access.alternatives)}.")
    return "\n".join(lines)


def unaccepted(card: Card) -> str | None:
    """Return what a study must say before it may use a data set whose terms are to be accepted."""
    if not card.licence.gated:
        return None
    return "\n".join(
        [
            f"data set {card.id!r} has terms that you have to accept ({card.licence.spdx}).",
            *terms(card),
            f"If you have, write into the study: accept_licence: [{card.id}]",
        ]
    )


def describe(file: Archive, archives: Path) -> list[str]:
    """Return where a file is to be put, and how it is recognised."""
    size = f" ({file.bytes:,} bytes)" if file.bytes else ""
    lines = [f"  put {file.name}{size} here: {archives / file.name}"]
    for kind in ("sha256", "md5"):
        if value := getattr(file, kind):
            lines.append(f"    {kind} {value} ({file.checksum_status.replace('_', ' ')})")
    return lines


def terms(card: Card) -> list[str]:
    """Return what the owners of a data set ask for."""
    notes = [card.licence.note, card.licence.conflict and f"but: {card.licence.conflict}"]
    said = "; ".join(note for note in notes if note)
    lines = [f"  licence: {card.licence.spdx}{f', {said}' if said else ''}"]
    lines += [f"  to be cited: {source}" for source in card.source.citation]
    if card.source.required_text:
        lines.append(f"  to be printed: {card.source.required_text}")
    if card.source.homepage:
        lines.append(f"  terms and registration: {card.source.homepage}")
    return lines
