"""Numbers of a model card as text: arms, costs, files, digests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdpipe import __version__
from kdpipe.markup import DAGGER
from kdpipe.paths import NO_TEACHER
from kdpipe.provenance import digest, file_digest
from kdpipe.ship.card.text import settings
from kdpipe.ship.measured import Facts, read_facts

#: how many arms are listed
_ARMS = 10
_MB = 1e6
#: exported file -> what it is
FORMS = {
    "model.pt": "kdpipe's own: weights and all settings",
    "model.onnx": "ONNX, float32",
    "model.int8.onnx": "ONNX, 8-bit weights and activations",
    "model.ts": "TorchScript",
    "model.pt2": "torch.export",
    "bundle": "MONAI bundle",
}
_COSTS = {
    "parameters": "parameters",
    "macs": "multiply-accumulates",
    "cpu_ms": "latency on the CPU, ms",
    "cpu_mb": "memory on the CPU, MB",
    "gpu_ms": "latency on the GPU, ms",
    "gpu_mb": "memory on the GPU, MB",
    "bytes": "weights on the disk, MB",
}

Rows = list[list[str]]


def limits(found: Facts) -> str:
    """Return the limits that were set."""
    return ", ".join(f"{key} {value:,.10g}" for key, value in found.items() if value) or "none"


def arms(found: Sequence[Facts], readings: Sequence[str]) -> tuple[list[str], Rows]:
    """Return the arms that were chosen from, best first."""
    rows = [
        [
            arm["student"],
            arm["method"] + (DAGGER if arm["method"] in readings else ""),
            "" if arm["teacher"] == NO_TEACHER else arm["teacher"],
            _number(arm["validation_dice"], ".4f"),
            ", ".join(f"{seed}: {_number(dice, '.4f')}" for seed, dice in arm["seeds"].items()),
            _number(arm["parameters"], ",.0f"),
            _number(arm["cpu_ms"], ",.4g"),
            arm["excluded"] or "yes",
        ]
        for arm in found[:_ARMS]
    ]
    header = ["student", "method", "teacher", "validation Dice", "by seed", "parameters", "CPU ms"]
    if left := len(found) - _ARMS:
        rows += [[f"and {left} more", *[""] * 7]] if left > 0 else []
    return [*header, "within the limits"], rows


def training_time(facts: Facts) -> str:
    """Return how long the training took, where, and which epoch was kept."""
    seconds = facts.get("seconds")
    took = f"{seconds:,.0f} s" if isinstance(seconds, int | float) else "a time not known"
    return f"trained in {took}, weights of epoch {facts.get('best_epoch', 'unknown')}"


def teacher(choice: Facts) -> str:
    """Return who taught the student, and whether that network was trained in this study."""
    found = choice["teacher"]
    run = read_facts(Path(found["folder"]) / "run.json", "network")
    dice = _number(found["validation_dice"], ".4f")
    named = f"{found['teacher']} ({run['network']['name']}), validation Dice {dice}"
    adopted = (
        " It was trained elsewhere and taken over as it was: the terms of its makers, and of the "
        "data that they had, come with it."
    )
    if not choice["taught"]:
        return f"No teacher took part. The best of the study, to compare with: {named}."
    return f"Teacher: {named}.{adopted if 'adopt' in run else ''}"


def citation(run: Facts, method: Sequence[str]) -> list[str]:
    """Return what to cite: data set, method, kdpipe; and what the data's owner asks to print."""
    source = run["data"]["source"]
    lines = [f"Data: {'; '.join(source['citation'])}"] if source["citation"] else []
    if source["required_text"]:
        lines.append(f"The data's owner asks to print: {source['required_text']}")
    papers = [line.partition(" Paper: ")[2] for line in method]
    lines += [f"Method: {paper}" for paper in papers if paper and not paper.startswith("none")]
    return [*lines, f"Made with kdpipe {__version__}, see its CITATION.cff"]


def costs(card: Facts) -> tuple[list[str], Rows]:
    """Return what student and teacher cost, a row each."""
    rows = []
    for name, title in _COSTS.items():
        both = [card[role][name] for role in ("student", "teacher")]
        if both == [None, None]:
            continue
        shown = [value / _MB if name == "bytes" and value else value for value in both]
        form = ",.0f" if name in ("parameters", "macs") else ",.4g"
        ratio = card["ratios"][name]
        times = "" if ratio is None else f"{ratio:,.3g}"
        rows.append([title, *(_number(value, form) for value in shown), times])
    names = [f"{role} ({card[role]['network']})" for role in ("student", "teacher")]
    return ["", *names, "teacher : student"], rows


def files(forms: Facts) -> tuple[list[str], Rows]:
    """Return what was exported: how large, how fast, and how near to the original."""
    rows = []
    for file, found in forms.items():
        times = [_number(found.get(name), ",.4g") for name in ("latency_ms", "torch_latency_ms")]
        loss = found.get("dice_loss")
        rows.append(
            [
                f"export/{file}",
                FORMS.get(file, ""),
                _number(found["bytes"] / _MB, ",.3g"),
                "" if "latency_ms" not in found else f"{times[0]} ({times[1]})",
                "" if loss is None else f"{found['largest_difference']:.2g}",
                "" if loss is None else f"{100 * found['same_labels']:.3f}",
                "" if loss is None else f"{100 * loss:+.2f}",
            ]
        )
    header = ["file", "what it is", "MB", "CPU ms (PyTorch beside it)"]
    return [*header, "logits differ by", "same labels, %", "Dice lost, points"], rows


def parity(found: Facts) -> str:
    """Return how the exported files were held against the original."""
    limits, reference = found["limits"], found["reference"]
    return (
        f"Each form was run beside model.pt in PyTorch on {reference['windows']} windows and on "
        f"{len(reference['cases'])} whole validation cases before it was written. Logits may "
        f"differ by {limits['largest_difference']:g}, and {100 * limits['same_labels']:g} % of the "
        f"labels of each case must be the same; no limits: {', '.join(limits['without'])}, whose "
        "loss is stated instead. Latency: one window, one thread."
    )


def processor(window: Facts) -> str:
    """Return the machine that was measured on."""
    count = window["threads"]
    threads = f", {count} thread{'' if count == 1 else 's'}" if count else ""
    on_gpu = f"; GPU: {window['gpu']}" if window["gpu"] else ""
    return f"{window['processor'] or 'not known'}{threads}{on_gpu}"


def provenance(run: Facts, choice: Facts, split: Path, manifest: Path) -> Rows:
    """Return (what, digest or version) of all that this network is made from."""
    chosen = Path(choice["chosen"]["folder"])
    facts = read_facts(chosen / "model.json", "validation_dice")
    return [
        ["kdpipe", __version__],
        ["study", run["study"]],
        ["cell", str(chosen)],
        ["SHA-256 of the weights", facts.get("weights_sha256", "not known")],
        ["digest of the training", facts.get("training_sha256", "not known")],
        ["digest of the training's code", facts.get("code") or "not known"],
        ["SHA-256 of the settings (run.json)", file_digest(chosen / "run.json")],
        ["SHA-256 of the data's manifest", file_digest(manifest)],
        ["SHA-256 of the split's lists", read_facts(split).get("sha256", "not known")],
        ["SHA-256 of the teacher's weights", choice["teacher"].get("weights_sha256", "")],
        ["trained with", settings(facts.get("environment", {}))],
        ["trained on", settings(facts.get("hardware", {}))],
    ]


def exported(folder: Path, parity: Facts) -> Rows:
    """Return the versions that exported, and the digest of each file."""
    files = [path for path in sorted(folder.iterdir()) if path.name[0] != "."]
    rows = [[f"SHA-256 of export/{path.name}", _digest(path)] for path in files]
    return [["exported with", settings(parity["environment"])], *rows]


def _digest(path: Path) -> str:
    """Digest of a file, or of the names and digests of all files in a folder."""
    if path.is_file():
        return file_digest(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return digest([[str(file.relative_to(path)), file_digest(file)] for file in files])


def _number(value: float | None, form: str) -> str:
    return "none" if value is None else f"{value:{form}}"
