"""Our numbers beside published ones: levels, gains over the undistilled student, and claims.

`kdpipe.stats.reproduction` decides. A printed number is reproduced if ours agrees with it, either
way; a claim ("more than 10 points") if ours is larger beyond doubt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from kdpipe.atomic import atomic_path
from kdpipe.protocols import direction
from kdpipe.stats.arms import ARM, Arm, Board, Scored
from kdpipe.stats.literature import Claim, Published, Reference, Row, load_references
from kdpipe.stats.reproduction import (
    CANNOT_TELL,
    NOT_REPRODUCED,
    Estimate,
    Interval,
    beyond_zero,
    estimate,
    interval,
    settles,
    verdict,
    with_borrowed_runs,
)
from kdpipe.stats.scores import NONE, read_scores

#: columns of ``references.csv``
REFERENCES = [
    *("reference", "table", "kind", *ARM, "against", "structure", "protocol", "metric", "unit"),
    *("printed", "printed_unit", "published", "published_sd", "published_low", "published_high"),
    *("ours", "ours_sd", "low", "high", "n_cases", "n_seeds", "margin"),
    *("verdict", "needed", "needed_of", "remarks"),
]


def write_references(run: dict[str, Any], tables: Path) -> pd.DataFrame:
    """Write ``references.csv`` beside the ``scores.csv`` of a study, and return it.

    Args:
        run: the study's ``run.json``.
        tables: folder of the study's tables.

    Raises:
        DataError: ``scores.csv`` is missing or unreadable.
        ConfigError: a published table is wrong.
    """
    matched = match_published(read_scores(tables / "scores.csv"), run)
    with atomic_path(tables / "references.csv") as temporary:
        matched.to_csv(temporary, index=False, na_rep="nan")
    return matched


def match_published(
    scores: pd.DataFrame, run: dict[str, Any], references: Sequence[Reference] | None = None
) -> pd.DataFrame:
    """Return one row for each published number that the study can be compared with.

    Args:
        scores: tidy table of scores.
        run: the study's ``run.json``: ``entries``, ``protocols`` and ``statistics`` count.
        references: sources; those of kdpipe if None.

    Returns:
        Columns `REFERENCES`. ``kind`` is ``level``, ``gain`` (oriented: positive is better) or
        that of a claim; ``published`` and ``ours`` are in ``unit`` (for ``gain_percent``: per cent
        of the rival), whatever ``printed_unit`` the paper names. ``published_low`` and ``_high``
        hold the paper's own uncertainty and the ``margin``, ``low`` and ``high`` ours. ``needed``
        (0: none) of ``needed_of`` would settle what cannot be told.
    """
    references = load_references() if references is None else references
    known = {name for reference in references for name in reference.datasets}
    board = Board(scores[scores["dataset"].isin(known)], run)
    rows: list[dict[str, Any]] = []
    for reference in references:
        for table in reference.tables:
            rows += [{"reference": reference.id, **row} for row in _match_table(board, table)]
        for claim in reference.claims:
            rows += [{"reference": reference.id, **row} for row in _match_claim(board, claim)]
    return pd.DataFrame(rows, columns=REFERENCES)


# tables


def _match_table(board: Board, table: Published) -> Iterator[dict[str, Any]]:
    arms = [arm for arm in board.arms if arm.dataset in table.datasets]
    for row in filter(lambda row: row.is_complete, table.rows):
        for arm in (arm for arm in arms if _is_of(arm, row)):
            for name in row.scores:
                yield from _match_number(board, table, row, name, arm)


def _is_of(arm: Arm, row: Row) -> bool:
    teacher, student, method = arm.names
    if row.role == "teacher" or arm.role == "teacher":
        return row.role == arm.role and row.teacher == teacher
    return (row.student, row.method) == (student, method) and (
        method == NONE or row.teacher == teacher
    )


def _match_number(
    board: Board, table: Published, row: Row, name: str, arm: Arm
) -> Iterator[dict[str, Any]]:
    column = table.metrics[name]
    protocols = [p for p in board.protocols if p == table.protocol] + board.protocols[:1]
    scored = board.scored(arm, row.structures, protocols, column.metric)
    if scored is None:
        return
    common = {
        **_of_arm(arm),
        **scored.keys,
        "table": table.title,
        "printed": row.printed,
        "printed_unit": column.printed,
    }
    theirs, ours = _printed(table, row, name), estimate(scored.values)
    yield common | _decide("level", board, table, arm, scored, theirs, ours)
    rival, before = board.baseline(arm), _undistilled(table, row)
    gain = board.gain(arm, rival, scored) if rival and rival != arm else None
    if rival and gain and before and name in before.scores:
        turn = direction(scored.protocol, scored.metric)
        theirs = theirs.minus(_printed(table, before, name)).scaled(turn)
        decided = _decide("gain", board, table, arm, scored, theirs, gain)
        yield common | decided | {"against": rival.method}


def _undistilled(table: Published, row: Row) -> Row | None:
    """The row of the student alone."""
    if row.role == "teacher" or row.method == NONE:
        return None
    key = (row.student, NONE, row.structures)
    return next((r for r in table.rows if (r.student, r.method, r.structures) == key), None)


def _printed(table: Published, row: Row, name: str) -> Estimate:
    """A printed mean; a number of runs that is not known counts as one."""
    score = row.scores[name]
    sd, runs = score[1] if len(score) == 2 else math.nan, table.runs or 1
    printed = Estimate(score[0], sd, runs, max(runs - 1, 1), sd, cases=table.test_cases or 0)
    return printed.scaled(table.metrics[name].scale)


def _decide(
    kind: str,
    board: Board,
    table: Published,
    arm: Arm,
    scored: Scored,
    theirs: Estimate,
    ours: Estimate,
) -> dict[str, Any]:
    column = next(c for c in table.metrics.values() if c.metric == scored.metric)
    same_cases = arm.split == table.split and ours.cases == table.test_cases
    margin = board.margin(scored.unit)
    remarks = [*arm.remarks, *_differences(table, arm, scored, same_cases)]
    if math.isnan(ours.run_sd) and not math.isnan(theirs.run_sd):
        remarks.append("one seed: its scatter is taken to be theirs")
    shown = _shown(theirs, ours) | {"kind": kind, "margin": margin}
    ours, theirs = with_borrowed_runs(ours, theirs), with_borrowed_runs(theirs, ours)
    if not same_cases:
        theirs = replace(theirs, excess_sd=theirs.run_sd, case_sd=ours.case_sd)
    if scored.unit != column.computed:
        remarks.append(f"theirs in {column.computed}, ours in {scored.unit}")
        theirs = replace(theirs, mean=math.nan)
    core, reach = (
        interval(theirs, board.confidence, over_cases=over_cases, margin=margin)
        for over_cases in (False, not same_cases)
    )
    if kind == "gain":
        core, reach = (beyond_zero(bounds, theirs.mean, margin) for bounds in (core, reach))
    return shown | _verdict(board, core, reach, ours, not same_cases, remarks)


def _differences(table: Published, arm: Arm, scored: Scored, same_cases: bool) -> Iterator[str]:
    if arm.split != table.split:
        yield f"other split ({table.split})" if table.split else "their split is not known"
    elif not same_cases:
        yield f"other cases ({table.test_cases})"
    if scored.protocol != table.protocol:
        yield (
            f"other protocol ({table.protocol})"
            if table.protocol
            else "their protocol is not known"
        )


# claims


def _match_claim(board: Board, claim: Claim) -> Iterator[dict[str, Any]]:
    for arm in board.arms:
        if arm.dataset not in claim.datasets or arm.names[2] != claim.method:
            continue
        if claim.student not in (None, arm.names[1]):
            continue
        scored = _scored_for(board, arm, claim)
        for rival in _rivals(board, arm, claim):
            if scored and (gain := board.gain(arm, rival, scored)):
                yield _claimed(board, claim, arm, rival, scored, gain)


def _scored_for(board: Board, arm: Arm, claim: Claim) -> Scored | None:
    """The primary protocol's scores by the metric of the claim, whatever its HD95 is called."""
    names = ("dice",) if claim.metric == "dice" else ("hd95_max", "hd95_pooled")
    found = (board.scored(arm, claim.structures, board.protocols[:1], name) for name in names)
    return next(filter(None, found), None)


def _rivals(board: Board, arm: Arm, claim: Claim) -> list[Arm]:
    if claim.against == "none":
        return [rival] if (rival := board.baseline(arm)) else []
    place = (arm.dataset, arm.split, arm.role, arm.student)
    return [
        other
        for other in board.arms
        if (other.dataset, other.split, other.role, other.student) == place
        and other.names[2] not in (NONE, claim.method)
    ]


def _claimed(
    board: Board, claim: Claim, arm: Arm, rival: Arm, scored: Scored, ours: Estimate
) -> dict[str, Any]:
    value, unit = claim.value, scored.unit
    if claim.kind == "gain_percent":
        of = board.scored(rival, [scored.structure], [scored.protocol], scored.metric)
        level = estimate(of.values).mean if of else math.nan
        ours, unit = ours.scaled(100 / level if level else math.nan), "percent"
    elif unit == "fraction":
        value /= 100
    remarks, theirs = [*arm.remarks, *rival.remarks], Estimate(value, math.nan, 1, math.nan)
    shown = _shown(theirs, ours) | {"margin": 0.0}
    if math.isnan(ours.run_sd):  # one seed: the interval is over cases alone
        remarks.append("one seed: how much another training would differ is not known")
        ours = replace(ours, run_sd=0.0, excess_sd=0.0)
    bounds = Interval(value, math.inf)
    decided = _verdict(board, bounds, bounds, ours, True, remarks)
    if claim.up_to and decided["verdict"] == NOT_REPRODUCED:
        said = "; ".join(filter(None, (decided["remarks"], "up to: another setting may be meant")))
        decided |= {"verdict": CANNOT_TELL, "remarks": said}
    common = {"kind": claim.kind, "table": "", "printed": claim.text, "printed_unit": ""}
    labels = {"against": rival.method, **scored.keys, "unit": unit}
    return _of_arm(arm) | common | labels | shown | decided


# both


def _of_arm(arm: Arm) -> dict[str, Any]:
    return {name: getattr(arm, name) for name in ARM} | {"against": ""}


def _shown(theirs: Estimate, ours: Estimate) -> dict[str, Any]:
    return {
        "published": theirs.mean,
        "published_sd": theirs.run_sd,
        "ours": ours.mean,
        "ours_sd": ours.run_sd,
        "n_cases": ours.cases,
        "n_seeds": ours.runs,
    }


def _verdict(
    board: Board,
    core: Interval,
    reach: Interval,
    ours: Estimate,
    over_cases: bool,
    remarks: list[str],
) -> dict[str, Any]:
    mine = interval(ours, board.confidence, over_cases=over_cases)
    said, needed, of = verdict(mine, core, reach), 0, ""
    if said == CANNOT_TELL:
        needed, of = settles(ours, core, reach, board.confidence, over_cases=over_cases)
    return {
        "published_low": reach.low,
        "published_high": reach.high,
        "low": mine.low,
        "high": mine.high,
        "verdict": said,
        "needed": needed,
        "needed_of": of if needed else "",
        "remarks": "; ".join(remarks),
    }
