"""The figures of synthetic studies: what is there, what it says, and that it can be read."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from figures.synthetic import SMALL, Plan, many, write_study
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from kdpipe.errors import ConfigError, DataError
from kdpipe.figures import differences, frontier, missed, ranks, scores, size, terms
from kdpipe.figures.drawing import Drawing
from kdpipe.figures.study import StudyData
from kdpipe.figures.style import DOUBLE, RC, SINGLE
from kdpipe.figures.write import draw_all, write_figures

ARMS = {"none", *SMALL.methods}
KINDS = {"differences", "scores", "ranks", "frontier", "missed", "size", "boundary", "training"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    return StudyData(*write_study(tmp_path_factory.mktemp("small"), SMALL))


@pytest.fixture(scope="module")
def drawings(small: StudyData) -> list[Drawing]:
    return list(draw_all(small))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> list[Drawing]:
    """Forty arms."""
    plan = dataclasses.replace(many(), cases=5, structures=("liver", "spleen"), seeds=1, epochs=6)
    plan = dataclasses.replace(plan, bands=False)
    study = StudyData(*write_study(tmp_path_factory.mktemp("many"), plan))
    with matplotlib.rc_context(RC):
        kinds = (scores, differences, ranks, missed)
        rows = [drawing for kind in kinds for drawing in kind.draw(study)]
        return [*rows, next(terms.draw(study)), next(size.draw(study))]


def _drawn(figure: Figure) -> list[Text]:
    """The texts that a reader sees; ticks outside the axes' limits are not drawn."""
    unseen = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            unseen |= {
                label
                for tick in ticks
                for label in (tick.label1, tick.label2)
                if not low - 1e-9 <= tick.get_loc() <= high + 1e-9
            }
    texts = figure.findobj(Text)
    return [text for text in texts if text.get_visible() and text.get_text() and text not in unseen]


def _problems(figure: Figure) -> list[str]:
    """Texts that leave the figure or lie on one another."""
    FigureCanvasAgg(figure).draw()
    width, height = figure.bbox.width, figure.bbox.height
    boxes = [(text.get_text(), text.get_window_extent()) for text in _drawn(figure)]
    found = [
        f"{name!r} leaves the figure"
        for name, box in boxes
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    ]
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        along = min(a.y1, b.y1) - max(a.y0, b.y0)
        if across > 2 and along > 2:  # pixels at 150 dpi
            found.append(f"{one!r} lies on {other!r}")
    return found


def test_every_kind_of_figure_is_there(drawings: list[Drawing]) -> None:
    assert {drawing.name.split("_")[0] for drawing in drawings} == KINDS
    assert len({drawing.name for drawing in drawings}) == len(drawings)


def test_every_arm_is_named_in_every_figure_of_arms(drawings: list[Drawing]) -> None:
    for drawing in drawings:
        texts = {text.get_text().rstrip("†") for text in _drawn(drawing.figure)}
        without_none = drawing.name.startswith(("diff", "size", "bound", "training_gradients"))
        expected = ARMS - {"none"} if without_none else ARMS
        if not drawing.name.startswith("frontier"):
            assert expected <= texts, drawing.name


@pytest.mark.slow
def test_forty_arms_are_all_named(wide: list[Drawing]) -> None:
    rows = [d for d in wide if d.name.startswith("scores_dice")]
    names = {label.get_text() for d in rows for label in d.figure.axes[0].get_yticklabels()}
    assert len(names) == 43  # 20 methods with 2 teachers, none, 2 teachers
    assert "sum_of_many_…a_long_label from swin_unetr" in names


@pytest.mark.slow
def test_texts_neither_overlap_nor_leave_the_figure(
    drawings: list[Drawing], wide: list[Drawing]
) -> None:
    found = {d.name: problems for d in [*drawings, *wide] if (problems := _problems(d.figure))}
    assert not found


@pytest.mark.slow
def test_texts_are_readable_in_print(drawings: list[Drawing], wide: list[Drawing]) -> None:
    for drawing in (*drawings, *wide):
        assert min(text.get_fontsize() for text in _drawn(drawing.figure)) >= 7
        width, height = drawing.figure.get_size_inches()
        assert SINGLE <= width <= DOUBLE
        assert height <= 10.0  # a page


def test_captions_say_what_how_many_and_by_what(drawings: list[Drawing]) -> None:
    for drawing in drawings:
        assert drawing.caption.endswith(".") and drawing.title and drawing.group
        assert "  " not in drawing.caption and ".." not in drawing.caption
        if not drawing.name.startswith("training"):
            assert "n = 20 cases, 2 seeds an arm; protocol strict_mm." in drawing.caption
    marked = [d for d in drawings if d.name.startswith(("scores", "ranks", "missed"))]
    assert all("†: a reading" in d.caption for d in marked)


@pytest.mark.slow
def test_writes_valid_files_that_are_the_same_each_time(small: StudyData, tmp_path: Path) -> None:
    study = tmp_path / "study"
    study.mkdir()
    run, tables = write_study(study, Plan({"kd": 1.0}, cases=6, bands=False, structures=("liver",)))
    run["cells"] = []  # training is drawn elsewhere
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_figures(run, tables, tmp_path / name / "figures")
    one, two = (tmp_path / name / "figures" for name in ("one", "two"))
    index = json.loads((one / "figures.json").read_text())
    assert {frozenset(entry) for entry in index} == {
        frozenset(("name", "title", "caption", "group"))
    }
    files = {f"{entry['name']}{suffix}" for entry in index for suffix in (".svg", ".png")}
    assert {file.name for file in one.iterdir()} == files | {"figures.json"}
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes()
    for file in one.glob("*.svg"):
        root = ElementTree.parse(file).getroot()
        assert root.tag.endswith("svg") and not list(root.iter("{http://www.w3.org/2000/svg}text"))
    for file in one.glob("*.png"):
        assert Image.open(file).info["dpi"] == pytest.approx((150, 150), abs=0.1)
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"figures"}


def test_replaces_an_older_folder_and_what_a_killed_run_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdpipe.figures.write.FIGURES", (frontier.draw,))
    plan = Plan({"kd": 1.0}, cases=2, seeds=1, structures=("liver",), bands=False)
    run, tables = write_study(tmp_path, plan)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "old.svg").touch()
    with pytest.raises(ConfigError, match=r"holds other files \(old\.svg\)"):
        write_figures(run | {"cells": []}, tables, tmp_path / "figures")
    (tmp_path / "figures" / "figures.json").touch()
    (tmp_path / ".tmp-figures-abc").mkdir()
    write_figures(run | {"cells": []}, tables, tmp_path / "figures")
    assert not (tmp_path / "figures" / "old.svg").exists()
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_missing_table_is_an_error_that_names_it(tmp_path: Path) -> None:
    run, tables = write_study(tmp_path, Plan({"kd": 1.0}, cases=2, bands=False))
    (tables / "ranks.csv").unlink()
    with pytest.raises(DataError, match=r"ranks\.csv"):
        write_figures(run, tables, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


DEGENERATE = {
    "one case": Plan({"kd": 1.0}, cases=1, seeds=1, misses=False),
    "one structure": Plan({"kd": 1.0}, cases=8, structures=("liver",)),
    "no none": Plan({"kd": 1.0, "cwd": 0.2}, cases=6, none=False),
    "only none": Plan({}, cases=6),
    "voxels": Plan({"kd": 1.0}, cases=6, unit="voxel"),
    "many groups": Plan(
        {"kd": 1.0},
        cases=3,
        seeds=1,
        structures=("liver",),
        datasets=("synapse", "word"),
        students=("unet_tiny", "unet_small"),
        folds=2,
        bands=False,
    ),
    "many structures": Plan({"kd": 1.0}, 5, 1, structures=tuple("abcdefghijkl")),
    "odd names": Plan({"k$d_{x}$": 1.0, "a.b": 0.1, "a-b": 0.2}, 5, 1),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_odd_studies_are_drawn_as_far_as_they_go(name: str, tmp_path: Path) -> None:
    plan = dataclasses.replace(DEGENERATE[name], epochs=6)
    drawings = list(draw_all(StudyData(*write_study(tmp_path, plan))))
    kinds = {drawing.name.split("_")[0] for drawing in drawings}
    assert {"scores", "training"} <= kinds
    assert ("differences" in kinds) == (name not in ("no none", "only none"))
    assert ("size" in kinds) == (name not in ("no none", "only none"))
    groups = len(plan.datasets) * len(plan.students)
    found = [drawing for drawing in drawings if drawing.name.startswith("training_dice")]
    assert len(found) == groups
    for drawing in drawings[:3]:
        assert not _problems(drawing.figure)
    if name == "voxels":
        assert any("voxel" in drawing.figure.get_supxlabel() for drawing in drawings)


def test_infinite_distances_are_said_not_drawn(tmp_path: Path) -> None:
    run, tables = write_study(tmp_path, dataclasses.replace(SMALL, misses=False))
    table = pd.read_csv(tables / "scores.csv", dtype=str, keep_default_na=False)
    first = (table["method"] == "kd") & (table["structure"] == "liver") & (table["seed"] == "0")
    first &= table["metric"].str.startswith("hd95") & (table["case"] == table["case"].iloc[0])
    assert first.any()
    table.loc[first, "value"] = "inf"
    table.to_csv(tables / "scores.csv", index=False)
    captions = [d.caption for d in scores.draw(StudyData(run, tables)) if "hd95" in d.name]
    # of the structure and of the mean over structures
    assert captions and all("2 infinite values" in caption for caption in captions)


def test_metrics_without_a_number_are_left_out_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, tables = write_study(tmp_path, Plan({"kd": 1.0}, cases=5, seeds=1, epochs=10))
    for name, column in (("scores.csv", "value"), ("comparisons.csv", "difference")):
        table = pd.read_csv(tables / name, dtype=str, keep_default_na=False)
        table[column] = "nan"
        table.to_csv(tables / name, index=False)
    for cell in run["cells"]:
        (Path(cell["folder"]) / "train.csv").unlink()
    with caplog.at_level(logging.INFO):
        drawings = list(draw_all(StudyData(run, tables)))
    assert not [d for d in drawings if d.name.startswith(("scores", "size", "train", "boundary"))]
    assert "no value is a number" in caplog.text
    assert "no arm is compared with none" in caplog.text
    assert "train.csv is not readable" in caplog.text


def test_the_forest_plot_shows_the_tables_numbers(small: StudyData) -> None:
    drawing = next(differences.draw(small))
    table = small.comparisons
    table = table[(table["metric"] == "dice") & (table["structure"] == "mean")]
    best = table.sort_values("difference").iloc[-1]
    texts = [text.get_text() for text in _drawn(drawing.figure)]
    numbers = f"{100 * best['difference']:+.2f} [{100 * best['low']:.2f}, {100 * best['high']:.2f}]"
    assert any(text.startswith(numbers) for text in texts)
    significant = (table["p_holm"] < 0.05).sum()
    assert sum(text.endswith(" *") for text in texts) == significant > 0


def test_gains_are_paired_and_positive_where_the_arm_is_better(small: StudyData) -> None:
    group = small.groups[0]
    dice, hd95 = small.headline(group)
    for measure in (dice, hd95):
        gains = small.gains(group, measure)
        values = small.by_case(group, measure.metric).set_index(["arm", "case", "structure"])
        row = gains.iloc[3]
        none = next(arm for arm in small.arms(group) if arm.method == "none")
        mine, its = (
            values.loc[(arm, row["case"], row["structure"]), "value"] for arm in (row["arm"], none)
        )
        assert row["gain"] == pytest.approx(measure.sign * measure.factor * (mine - its))


def test_critical_difference_is_that_of_the_published_table() -> None:
    # Demsar 2006, table 5: q of 0.05 is 2.569 for four classifiers, 3.164 for ten
    assert ranks.critical_difference(4, 14, 0.95) == pytest.approx(2.569 * (20 / 84) ** 0.5, 1e-3)
    assert ranks.critical_difference(10, 30, 0.95) == pytest.approx(
        3.164 * (110 / 180) ** 0.5, 1e-3
    )
    assert ranks.critical_difference(4, 4, 0.95) != ranks.critical_difference(4, 4, 0.95)  # NaN


def test_arms_are_sorted_by_their_mean_with_teachers_on_top(small: StudyData) -> None:
    names = [text.get_text() for text in next(scores.draw(small)).figure.axes[0].get_yticklabels()]
    assert names[0] == "nnunet (teacher)"
    group = small.groups[0]
    means = small.by_case(group, "dice")
    means = means[means["structure"] == "mean"].groupby("arm")["value"].mean()
    order = sorted(
        means.index[[not arm.is_teacher for arm in means.index]], key=lambda a: -means[a]
    )
    assert names[1:] == [small.label(arm, group) for arm in order]
