"""Where the data sets of a study come from, and whether they can be had."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from kdpipe.cards import Card
from kdpipe.config import Study
from kdpipe.errors import ConfigError, DataError
from kdpipe.gates import closed_gate, unaccepted
from kdpipe.paths import Paths
from kdpipe.sources import MIRROR, Archive


class Intake:
    """Files and folders of the data sets of a study.

    Args:
        study: its `data_source`, `accept_licence` and card folders count.
        cards: of its data sets, by name.
        paths: of the study.
    """

    def __init__(self, study: Study, cards: Mapping[str, Card], paths: Paths):
        self.study, self.cards, self.paths = study, cards, paths

    def source_files(self, dataset: str) -> list[str]:
        """Files of a data set's local source folder; empty for other sources."""
        folder = self._folder(dataset)
        if folder is None:
            return []
        patterns = ["dataset.json", "imagesTr/*", "labelsTr/*"]
        if self.cards[dataset].layout.kind == "files":
            patterns = ["**/*"]
        found = {file for pattern in patterns for file in folder.glob(pattern)}
        return sorted(str(f) for f in found if f.is_file() and not f.name.startswith("."))

    def files(self, dataset: str) -> list[Archive]:
        """Files that a data set needs, one a file: its own, or those that it is derived from."""
        card = self.study.card(self._origin(dataset))
        return [file for entry in card.files for file in entry.expanded()]

    def archives(self, dataset: str) -> str:
        """Folder of the published files that a data set needs."""
        return self.paths.archives(self._origin(dataset))

    def unpacked(self, dataset: str) -> str:
        """Folder of what is generated or unpacked, shared with what is derived from it."""
        return f"{self.paths.raw(self._origin(dataset))}/files"

    def check(self) -> None:
        """Raise before the graph is built if a data set cannot be had.

        A disk that is not mounted must not look like data that have changed, as Snakemake would
        delete what was made from them. All that a person has to do is said at once.
        """
        for dataset, card in self.cards.items():
            folder = self._folder(dataset)
            if folder and card.layout.kind == "files" and not folder.is_dir():
                raise ConfigError(f"data_source.{dataset}: {folder} is no folder; mend the path")
            if folder and card.layout.kind != "files" and not self._described(folder, card):
                raise ConfigError(
                    f"data_source.{dataset}: {folder} holds no dataset.json; name the folder with "
                    "dataset.json, imagesTr and labelsTr, and see that its disk is mounted"
                )
        messages = [text for dataset in self.cards for text in self._gates(dataset) if text]
        if messages:
            raise DataError("\n\n".join(messages))

    def warnings(self) -> list[str]:
        """Return what is allowed but to be known: data sets of the study that share patients."""
        return [
            f"data sets {first!r} and {second!r} share patients: what is trained on the one must "
            "not be tested on the other"
            for first, card in self.cards.items()
            for second in card.overlaps
            if second in self.cards and first < second
        ]

    def _described(self, folder: Path, card: Card) -> bool:
        return any((folder / root / "dataset.json").is_file() for root in (".", *card.layout.roots))

    def _gates(self, dataset: str) -> list[str | None]:
        card, mirror = self.cards[dataset], bool(os.environ.get(MIRROR))
        closed = [None if dataset in self.study.accept_licence else unaccepted(card)]
        if card.access.mode != "generate" and self._folder(dataset) is None:
            archives = Path(self.archives(dataset))
            closed.append(closed_gate(card, self.files(dataset), archives, mirror))
        return closed

    def _folder(self, dataset: str) -> Path | None:
        folder = self.study.data_source.get(dataset)
        return Path(folder).expanduser() if folder else None

    def _origin(self, dataset: str) -> str:
        card = self.cards[dataset]
        derived = card.source.derived_from if card.access.mode == "derived" else None
        return derived or dataset
