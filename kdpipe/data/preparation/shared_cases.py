"""Prepared cases that studies share, see `kdpipe.sharing`."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdpipe.cards import Waiver
from kdpipe.data.store import FILES, replace_case
from kdpipe.provenance import code_digest
from kdpipe.sharing import give, is_shared, shared_key, taken

if TYPE_CHECKING:
    from kdpipe.data.manifest import Case

log = logging.getLogger(__name__)


def take_case(case: Case, store: Path, digest: str, waivers: Sequence[Waiver]) -> bool:
    """Store a case as another study has prepared it, if one has; say whether it did."""
    if not is_shared():
        return False
    with taken("cases", _key(case, digest, waivers), FILES, store) as folder:
        if folder is None or _digest(folder) != digest:
            return False
        replace_case(store / case.case, folder)
    log.info("case %s: as another study has prepared it", case.case)
    return True


def give_case(case: Case, store: Path, digest: str, waivers: Sequence[Waiver]) -> None:
    """Let other studies have a case that was prepared."""
    if is_shared():
        files = [store / case.case / name for name in FILES]
        give("cases", _key(case, digest, waivers), files)


def _key(case: Case, digest: str, waivers: Sequence[Waiver]) -> str:
    """All that a stored case depends on; the code is that which runs, whatever `digest` says."""
    names = ["/".join(file.parts[-2:]) for file in (*case.images, case.label)]
    accepted = [waiver.model_dump(mode="json") for waiver in waivers]
    code = code_digest("kdpipe.data.preparation.prepare")
    return shared_key(case.case, case.subject, case.part, names, digest, accepted, code)


def _digest(folder: Path) -> str | None:
    try:
        stored: dict[str, Any] = json.loads((folder / "geometry.json").read_text(encoding="utf-8"))
    except ValueError:
        return None
    return stored.get("digest")
