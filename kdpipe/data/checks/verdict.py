"""Write down what the checks found, and stop the preparation if something is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdpipe.atomic import write_text
from kdpipe.data.checks.case_facts import Facts
from kdpipe.data.checks.data_set import check_data_set, identities
from kdpipe.data.checks.findings import Finding, write_findings
from kdpipe.data.checks.report import Contents, render_report
from kdpipe.errors import DataError
from kdpipe.labels import Labels
from kdpipe.rules import Rules

if TYPE_CHECKING:
    from kdpipe.data.manifest import Case


@dataclass(frozen=True)
class Checks:
    """How a data set is checked, and where the result goes.

    Attributes:
        rules: what its card says.
        integrity: ``integrity.json``, all findings and what `kdpipe.data.checks.leakage` compares.
        table: ``integrity.tsv``, a row a finding.
        report: ``report.html``, for people.
    """

    rules: Rules
    integrity: Path
    table: Path
    report: Path

    @property
    def files(self) -> tuple[Path, Path, Path]:
        """The three files."""
        return self.integrity, self.table, self.report


def conclude(
    checks: Checks,
    cases: Sequence[Case],
    labels: Labels,
    channels: Sequence[str],
    geometries: Mapping[str, Facts],
    failed: Sequence[Finding],
    store: Path,
) -> list[Finding]:
    """Check the data set as a whole and write the three files, errors or not.

    Args:
        checks: rules and files.
        cases: all that were found, those too that the card excludes.
        labels: ids and names.
        channels: names of the channels.
        geometries: `geometry.json` of each case that could be prepared.
        failed: findings of the others.
        store: where the prepared cases are, for the pictures.

    Returns:
        All findings in order, with whole paths.
    """
    names = checks.rules.names
    geometries = {case: _named(geometry, names) for case, geometry in geometries.items()}
    failed = [replace(finding, text=_name_all(finding.text, names)) for finding in failed]
    labels = _named_labels(labels, names)
    findings = check_data_set(cases, checks.rules, labels, geometries, failed)
    short = [finding.short() for finding in findings]  # where the data lie is not for reports
    contents = Contents(
        checks.rules, labels, channels, [case.subject for case in cases], geometries, short
    )
    write_text(checks.report, render_report(contents, store))
    facts = {
        "dataset": checks.rules.dataset,
        "n_cases": len(cases),
        "n_prepared": len(geometries),
        "cases": identities(cases, geometries),
    }
    write_findings(checks.integrity, checks.table, short, facts)
    return findings


def _named(geometry: Facts, names: Mapping[int, str]) -> Facts:
    """Say ``liver`` where a prepared case, which knows ids only, says ``label_1``."""
    facts = geometry["facts"]
    structures = {_name_all(name, names): found for name, found in facts["structures"].items()}
    findings = [{**f, "text": _name_all(f["text"], names)} for f in geometry["findings"]]
    return {**geometry, "findings": findings, "facts": {**facts, "structures": structures}}


def _named_labels(labels: Labels, names: Mapping[int, str]) -> Labels:
    absent = labels.may_be_absent
    if absent != "all":
        absent = tuple(_name_all(name, names) for name in absent)
    return Labels(raw={**labels.raw, **names}, may_be_absent=absent)


def _name_all(text: str, names: Mapping[int, str]) -> str:
    return re.sub(r"\blabel_(\d+)\b", lambda found: names.get(int(found[1]), found[0]), text)


def stop_on_errors(findings: Sequence[Finding], failed: Sequence[str]) -> None:
    """Raise DataError with a line for each finding that stops; `failed` are unprepared cases."""
    stops = [finding for finding in findings if finding.stops]
    alone = [finding for finding in stops if finding.case in failed]
    others = [finding for finding in stops if finding.case not in failed]
    blocks = []
    if alone:
        blocks.append(f"{len(failed)} cases cannot be prepared:")
        blocks += sorted(f"  {finding}" for finding in alone)
    if others:
        blocks.append(f"{len(others)} errors of the data set:")
        blocks += [f"  {finding}" for finding in others]
    if blocks:
        raise DataError("\n".join(blocks))
