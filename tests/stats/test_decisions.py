import numpy as np
import pandas as pd
import pytest
from studies import CWD, KD, NONE, RUN, TUNED_KD, TUNED_NONE, simple, tidy

from kdpipe.errors import DataError
from kdpipe.stats import write
from kdpipe.stats.compare import compare_scores
from kdpipe.stats.decisions import render_decisions
from kdpipe.stats.scores import SCORES
from kdpipe.stats.summary import summarise_scores


def _render(scores: pd.DataFrame, **run) -> tuple[str, str]:
    run = RUN | run
    return render_decisions(compare_scores(scores, run), run)


def _line(markdown: str, start: str) -> list[str]:
    lines = [line for line in markdown.splitlines() if start in line and line.startswith("|")]
    return [text.strip() for text in lines[0].strip("|").split("|")]


def test_a_line_says_what_the_comparison_says():
    scores = tidy(simple())
    result = compare_scores(scores, RUN)
    chosen = result.comparisons["structure"] == "mean"
    chosen &= (result.comparisons["against_kind"] == "none") & (result.comparisons.method == "cwd")
    row = result.comparisons[chosen].iloc[0]
    markdown, _ = render_decisions(result, RUN)
    line = _line(markdown, "cwd")
    assert line[2] == f"{row['difference'] * 100:+.2f}"
    assert line[3] == f"{row['low'] * 100:+.2f} to {row['high'] * 100:+.2f}"
    assert line[4] == "< 0.001"
    assert line[6:] == ["1.00", "better", "is the best"]
    assert _line(markdown, "kd")[7:] == ["equivalent", "worse"]


def test_distances_have_a_table_of_their_own_in_their_unit():
    distances = {arm: 20 * (1 - values) for arm, values in simple().items()}
    scores = pd.concat([tidy(simple()), tidy(distances, metric="hd95_max", unit="mm")])
    markdown, latex = _render(scores)
    assert "### HD95 max against none, positive is better" in markdown
    assert "difference, mm" in markdown and "difference, points" in markdown
    assert latex.count(r"\begin{table}") == 2


def test_a_table_against_the_tuned_student():
    scores = simple()
    scores |= {TUNED_NONE: scores[NONE] + 0.02, TUNED_KD: scores[KD] + 0.06}
    markdown, _ = _render(tidy(scores))
    assert "### Dice against none+tuned, positive is better" in markdown


def test_notes_say_what_the_interval_covers():
    one, _ = _render(tidy(simple(n_seeds=1)))
    assert "the training's own noise is unknown" in one
    three, _ = _render(tidy(simple(n_seeds=3)))
    assert "other cases and other trainings" in three
    assert "the training's own noise is unknown" not in three


def test_six_cases_are_said_to_be_too_few():
    markdown, _ = _render(tidy(simple(n_cases=6)))
    assert "with 6 cases no comparison can be significant after correction" in markdown


def test_the_power_said_is_that_of_the_table():
    result = compare_scores(tidy(simple()), RUN)
    found = result.power["resolvable"].iloc[0] * 100
    assert f"a true difference of {found:.2g} Dice points" in render_decisions(result, RUN)[0]


def test_readings_and_leaky_splits_are_marked_and_explained():
    markdown, latex = _render(
        tidy(simple()), readings=["kd"], leaky_splits=[["phantom", "default"]]
    )
    assert _line(markdown, "kd")[1] == "kd†"
    assert "split default‡" in markdown and "too good" in markdown
    assert r"kd$\dagger$" in latex and r"default$\ddagger$" in latex
    plain, _ = _render(tidy(simple()))
    assert "†" not in plain and "‡" not in plain


def test_left_out_pairs_are_said():
    scores = simple()
    scores[CWD][:2] = np.nan
    assert "the pair is left out" in _render(tidy(scores))[0]
    assert "the pair is left out" not in _render(tidy(simple()))[0]


def test_only_the_primary_protocol_is_shown():
    scores = pd.concat([tidy(simple()), tidy(simple(), protocol="medpy")])
    _, latex = _render(scores, protocols=["strict_mm", "medpy"])
    assert latex.count(r"\begin{table}") == 1


def test_nothing_to_compare():
    markdown, latex = _render(tidy({NONE: simple()[NONE]}))
    assert "Nothing to compare" in markdown and "Nothing to compare" in latex


@pytest.fixture
def tables(tmp_path):
    scores = tidy(simple())[SCORES]
    scores.to_csv(tmp_path / "scores.csv", index=False, na_rep="nan")
    results = summarise_scores(scores).assign(
        reading=False, selects_on_test=True, split_sha256="0" * 64
    )
    results.to_csv(tmp_path / "results.csv", index=False, na_rep="nan")
    return tmp_path


@pytest.fixture
def run():
    from kdpipe.settings import Statistics

    statistics = Statistics(resamples=500).model_dump(mode="json")
    entries = {axis: {} for axis in ("teachers", "students", "methods")}
    return RUN | {"statistics": statistics, "entries": entries, "cells": [], "datasets": {}}


def test_all_files_of_a_study_are_written(tables, run):
    text = write.write_comparisons(run, tables)
    names = ("comparisons.csv", "ranks.csv", "power.csv", "comparisons.md", "comparisons.tex")
    for name in (*names, "references.csv", "claim.json"):
        assert (tables / name).stat().st_size, name
        assert str(tables / name) in text
    assert text.startswith((tables / "comparisons.md").read_text(encoding="utf-8"))
    written = pd.read_csv(tables / "comparisons.csv")
    assert written["selects_on_test"].all()
    assert set(written["verdict"]) == {"better", "worse", "equivalent"}


def test_numbers_survive_the_file(tables, run):
    write.write_comparisons(run, tables)
    again = compare_scores(write.read_scores(tables / "scores.csv"), run)
    written = pd.read_csv(tables / "comparisons.csv")
    for column in ("difference", "low", "high", "p_holm"):
        np.testing.assert_array_equal(written[column], again.comparisons[column])


def test_results_without_the_mark_are_refused(tables, run):
    (tables / "results.csv").write_text("dataset,split\nphantom,default\n")
    with pytest.raises(DataError, match=r"results\.csv.*Run the tables again"):
        write.write_comparisons(run, tables)
    assert not (tables / "comparisons.csv").exists()
