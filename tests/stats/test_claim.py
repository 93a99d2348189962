"""A claim follows from its scores, to the last number; whatever is changed is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kdpipe.cli import main
from kdpipe.errors import DataError
from kdpipe.protocols import get_protocol
from kdpipe.provenance import file_digest
from kdpipe.stats.claim import verify_claim, write_claim
from kdpipe.stats.scores import SCORES
from kdpipe.stats.summary import summarise_scores
from kdpipe.stats.write import write_comparisons

RUN: dict[str, Any] = {
    "study": "planted",
    "protocols": ["strict_mm"],
    "readings": ["mskd"],
    "entries": {"methods": {"cwd": {"name": "cwd", "params": {"temperature": 4.0}}}},
    "statistics": {"confidence": 0.95, "margin_percent": 0.5, "margin_mm": 0.5},
    "training": {"student": {"epochs": 3}},
    "datasets": {"btcv": {"title": "BTCV", "manifest": "/home/me/manifest.tsv"}},
}
ARMS = {
    ("student", "no_teacher", "none"): 0.70,
    ("student", "res_unet", "cwd"): 0.76,
    ("student", "res_unet", "mskd"): 0.701,
    ("teacher", "res_unet", ""): 0.80,
}
CASES = tuple(f"{number:04d}" for number in range(1, 13))


def planted() -> pd.DataFrame:
    """Twelve cases, two structures, two metrics, two seeds; a structure is missed here and there.

    A case is called 0001 and a structure NA, which are text.
    """
    rng = np.random.default_rng(0)
    rows = []
    for (role, teacher, method), mean in ARMS.items():
        for seed in (0, 1)[: 1 if role == "teacher" else 2]:
            for case in CASES:
                for structure in ("liver", "NA"):
                    dice = float(np.clip(mean + rng.normal(0, 0.02), 0, 1))
                    absent = structure == "NA" and case == "0003"
                    keys = {"role": role, "teacher": teacher, "method": method, "seed": seed}
                    keys |= {"student": "unet_tiny" if role == "student" else ""}
                    keys |= {"case": case, "structure": structure}
                    keys["status"] = "missing_in_both" if absent else "ok"
                    value = np.nan if absent else dice
                    rows.append(keys | {"metric": "dice", "value": value, "unit": "fraction"})
                    distance = value * -20 + 20
                    rows.append(keys | {"metric": "hd95_max", "value": distance, "unit": "mm"})
    constant = {"dataset": "btcv", "split": "monai_24_6", "fold": 0, "protocol": "strict_mm"}
    return pd.DataFrame(rows).assign(**constant)[SCORES]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables of a study as the pipeline leaves them, and the claim."""
    folder = tmp_path_factory.mktemp("tables")
    scores = planted()
    marks = {"split_sha256": "0123456789abcdef", "selects_on_test": True, "reading": False}
    results = summarise_scores(scores).assign(**marks, parameters=1.0e6)
    for name, table in {"scores": scores, "results": results}.items():
        table.to_csv(folder / f"{name}.csv", index=False, na_rep="nan")
    write_comparisons(RUN, folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    for file in original.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def change(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    claim = json.loads((folder / "claim.json").read_text())
    edit(claim)
    (folder / "claim.json").write_text(json.dumps(claim))


def first(claim: dict[str, Any], table: str, **keys: Any) -> dict[str, Any]:
    return next(row for row in claim[table] if keys.items() <= row.items())


def test_an_untouched_claim_is_verified(folder: Path) -> None:
    said = verify_claim(folder / "claim.json")
    claim = json.loads((folder / "claim.json").read_text())
    tables = ("results", "comparisons", "ranks", "power", "references")
    rows = [row for table in tables for row in claim[table]]
    numbers = [v for r in rows for v in r.values() if type(v) in (int, float)]
    assert said.startswith(f"verified: {len(numbers)} numbers of planted")
    assert len(numbers) > 300


def test_a_claim_says_what_was_done(folder: Path) -> None:
    claim = json.loads((folder / "claim.json").read_text())
    assert claim["schema_version"] == 1
    assert claim["environment"]["numpy"] == np.__version__
    assert claim["sha256"]["scores.csv"] == file_digest(folder / "scores.csv")
    assert {"results.csv", "comparisons.csv", "references.csv"} <= claim["sha256"].keys()
    assert claim["protocols"] == {"strict_mm": get_protocol("strict_mm").version}
    assert claim["seeds"] == {"student": [0, 1], "teacher": [0]}
    assert claim["settings"]["readings"] == ["mskd"]
    assert claim["settings"]["leaky_splits"] == [["btcv", "monai_24_6"]]
    assert claim["datasets"] == {"btcv": {"title": "BTCV"}}
    (split,) = claim["splits"]
    assert split["split_sha256"] == "0123456789abcdef"
    assert split["selects_on_test"] is True


def test_a_claim_is_strict_json(folder: Path) -> None:
    """NaN is null: other languages refuse the word that Python writes for it."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    claim = json.loads((folder / "claim.json").read_text(), parse_constant=refuse)
    assert first(claim, "results", role="teacher")["sd"] is None


def test_sentences_hold_the_numbers(folder: Path) -> None:
    claim = json.loads((folder / "claim.json").read_text())
    found = first(
        claim, "comparisons", method="cwd", metric="dice", structure="mean", against_kind="none"
    )
    wanted = (
        f"btcv/monai_24_6, unet_tiny: cwd from res_unet is better than none in Dice, by "
        f"{found['difference'] * 100:.2f} points"
    )
    assert found["verdict"] == "better"
    assert any(sentence.startswith(wanted) for sentence in claim["sentences"])
    assert any("acf_bckd BTCV" in sentence for sentence in claim["sentences"])


def a_mean(claim: dict[str, Any]) -> None:
    first(claim, "results", method="cwd", structure="liver", metric="dice")["mean"] += 1e-6


def a_verdict(claim: dict[str, Any]) -> None:
    first(claim, "comparisons", method="mskd", structure="mean")["verdict"] = "better"


def a_removed_row(claim: dict[str, Any]) -> None:
    del claim["comparisons"][0]


def a_second_row(claim: dict[str, Any]) -> None:
    claim["ranks"].append(claim["ranks"][0])


def an_invented_row(claim: dict[str, Any]) -> None:
    claim["results"].append(claim["results"][0] | {"method": "invented"})


def a_number_for_none(claim: dict[str, Any]) -> None:
    first(claim, "results", role="teacher")["sd"] = 0.001


def none_for_a_number(claim: dict[str, Any]) -> None:
    claim["power"][0]["sd"] = None


def a_truth_for_a_number(claim: dict[str, Any]) -> None:
    claim["comparisons"][0]["selects_on_test"] = 1


def a_seed(claim: dict[str, Any]) -> None:
    claim["seeds"]["student"] = [0, 1, 2]


def a_sentence(claim: dict[str, Any]) -> None:
    claim["sentences"][0] = claim["sentences"][0].replace("12 cases", "120 cases")


def a_published_verdict(claim: dict[str, Any]) -> None:
    row = claim["references"][0]
    row["verdict"] = "reproduced" if row["verdict"] != "reproduced" else "not reproduced"


def a_margin(claim: dict[str, Any]) -> None:
    claim["settings"]["statistics"]["margin_percent"] = 5.0


@pytest.mark.parametrize(
    ("edit", "path"),
    [
        (a_mean, "results: btcv monai_24_6 0 student res_unet unet_tiny cwd liver.*: mean"),
        (a_verdict, "comparisons: .* mskd none .*: verdict"),
        (a_removed_row, "comparisons: .*\n    claimed 0 rows, recomputed 1 row"),
        (a_second_row, "ranks: .*\n    claimed 2 rows, recomputed 1 row"),
        (an_invented_row, "results: .* invented .*\n    claimed 1 row, recomputed 0 rows"),
        (a_number_for_none, "sd\n    claimed 0.001, recomputed None"),
        (none_for_a_number, "power: .*: sd\n    claimed None, recomputed 0"),
        (a_truth_for_a_number, "selects_on_test\n    claimed 1, recomputed True"),
        (a_seed, "seeds: student"),
        (a_sentence, "sentences 1"),
        (a_published_verdict, "references: .*: verdict"),
        (a_margin, "comparisons: .*: margin\n    claimed 0.005, recomputed 0.05"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_change_of_a_claim_is_named(
    edit: Callable[[dict[str, Any]], None], path: str, folder: Path
) -> None:
    change(folder, edit)
    with pytest.raises(DataError, match=f"(?s){path}"):
        verify_claim(folder / "claim.json")


def test_a_changed_score_is_found_by_digest_and_by_what_follows(folder: Path) -> None:
    scores = pd.read_csv(folder / "scores.csv", dtype=str, keep_default_na=False)
    row = scores.index[(scores["method"] == "cwd") & (scores["value"] != "nan")][0]
    scores.loc[row, "value"] = "0.999"
    scores.to_csv(folder / "scores.csv", index=False)
    with pytest.raises(
        DataError, match=r"Restore scores\.csv(.|\n)*sha256 of scores\.csv"
    ) as caught:
        verify_claim(folder / "claim.json")
    assert "results: btcv monai_24_6 0 student res_unet unet_tiny cwd" in str(caught.value)


def test_a_digest_that_was_mended_does_not_hide_a_changed_score(folder: Path) -> None:
    scores = pd.read_csv(folder / "scores.csv", dtype=str, keep_default_na=False)
    scores.loc[0, "value"] = "0.999"
    scores.to_csv(folder / "scores.csv", index=False)
    digest = file_digest(folder / "scores.csv")
    change(folder, lambda claim: claim["sha256"].update({"scores.csv": digest}))
    with pytest.raises(DataError, match="none liver.*: mean") as caught:
        verify_claim(folder / "claim.json")
    assert "sha256 of" not in str(caught.value)


def test_a_missing_value_that_becomes_a_score_is_found(folder: Path) -> None:
    text = (folder / "scores.csv").read_text()
    (folder / "scores.csv").write_text(text.replace(",nan,", ",0.0,", 1))
    with pytest.raises(DataError, match="n_valid"):
        verify_claim(folder / "claim.json")


def test_a_changed_table_beside_the_claim_is_said(folder: Path) -> None:
    with (folder / "results.csv").open("a") as stream:
        stream.write("\n")
    with pytest.raises(DataError, match=r"1 value not .*(?s:.*)sha256 of results.csv"):
        verify_claim(folder / "claim.json")


def test_a_claim_needs_only_its_scores_wherever_they_are(folder: Path, tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    (folder / "claim.json").rename(alone / "claim.json")
    assert "verified" in verify_claim(alone / "claim.json", folder / "scores.csv")
    with pytest.raises(DataError, match=r"scores\.csv is not there.*--scores"):
        verify_claim(alone / "claim.json")
    with pytest.raises(DataError, match=r"Is a directory; give the claim\.json"):
        verify_claim(alone)


def test_the_order_of_rows_does_not_matter(folder: Path) -> None:
    change(folder, lambda claim: claim["comparisons"].reverse())
    assert "verified" in verify_claim(folder / "claim.json")


def test_infinity_is_written_and_read(folder: Path) -> None:
    """With four cases nothing can be shown, at any size."""
    scores = planted()
    scores = scores[scores["case"].isin(CASES[:4])]
    results = summarise_scores(scores).assign(split_sha256="0", selects_on_test=True)
    for name, table in {"scores": scores, "results": results}.items():
        table.to_csv(folder / f"{name}.csv", index=False, na_rep="nan")
    write_comparisons(RUN, folder)
    claim = json.loads((folder / "claim.json").read_text())
    assert claim["comparisons"][0]["resolvable"] == "inf"
    assert "these can show no difference" in claim["sentences"][0]
    assert "verified" in verify_claim(folder / "claim.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ("[]", "not a claim of schema version 1"),
        ('{"schema_version": 2}', "not a claim of schema version 1"),
        ('{"schema_version": 1, "results": [1]}', "no usable .*results"),
        ('{"schema_version": 1, "settings": {"protocols": []}}', "no usable .*settings"),
    ],
)
def test_what_is_no_claim_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "claim.json").write_text(text)
    with pytest.raises(DataError, match=message):
        verify_claim(tmp_path / "claim.json")


def test_a_table_that_is_missing_or_lacks_a_column_is_named(folder: Path) -> None:
    (folder / "power.csv").unlink()
    with pytest.raises(DataError, match=r"power\.csv: not readable"):
        write_claim(RUN, folder)
    (folder / "power.csv").write_text("dataset\n")
    with pytest.raises(DataError, match=r"power\.csv: lacks split"):
        write_claim(RUN, folder)


def test_the_command_verifies_and_fails_with_the_code_of_wrong_data(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(folder / "claim.json")]) == 0
    assert "verified" in capsys.readouterr().out
    change(folder, a_mean)
    assert main(["verify", str(folder / "claim.json")]) == 3
    assert "1 value not as recomputed" in capsys.readouterr().err
