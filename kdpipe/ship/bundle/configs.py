"""How a MONAI bundle segments: its configuration, with the names that MONAI's programs look for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdpipe.errors import ConfigError
from kdpipe.infer.description import Description

WINDOW_BATCH = 4
"""As `kdpipe predict` has it: other batches may round differently."""
_SIGNS = ("$", "@", "%")
"""With these MONAI's configurations begin an expression to run, a reference, a file to read."""


def inference(description: Description, package: str) -> dict[str, Any]:
    """Return ``configs/inference.json``.

    Args:
        description: of the network.
        package: name of the copied code.

    Raises:
        ConfigError: a parameter of the network or of its preset is a text that MONAI would run.
    """
    spec, targets = description.network, description.decoded

    def part(name: str, /, **arguments: Any) -> dict[str, Any]:
        return {
            "_target_": f"{package}.ship.bundle.parts.{name}",
            "_requires_": "@code",
            **arguments,
        }

    network = part(
        "network",
        spatial_dims=len(description.patch),
        in_channels=spec["in_channels"],
        out_channels=spec["out_channels"],
        name=spec["name"],
        params=spec["params"],
    )
    preset = description.preparation.model_dump(mode="json")
    _check_inert(spec["params"], preset)
    return {
        "imports": ["$import os", "$import sys"],
        "bundle_root": ".",
        "code": "$[sys.path.append(folder) for folder in "
        "[os.path.join(os.path.abspath(@bundle_root), 'code')] if folder not in sys.path]",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "dataset_dir": "$os.path.join(@bundle_root, 'data')",
        "output_dir": "$os.path.join(@bundle_root, 'eval')",
        "channels": list(map(inert, description.channels)),
        "overlap": description.overlap,
        "window_batch": WINDOW_BATCH,
        "datalist": part("datalist", dataset_dir="@dataset_dir", channels="@channels"),
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                part("LoadImageScand", keys="image", channels="@channels"),
                part("PrepareScand", keys="image", preset=preset, channels="@channels"),
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "@datalist",
            "transform": "@preprocessing",
        },
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "shuffle": False,
            "num_workers": 0,
        },
        "inferer": part(
            "SlidingScanInferer",
            roi_size=list(description.patch),
            overlap="@overlap",
            sw_batch_size="@window_batch",
        ),
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                part(
                    "RestoreLabelsd",
                    keys="pred",
                    orig_keys="image",
                    n_labels=targets.n_labels,
                    regions=targets.regions,
                ),
                part("SaveImageLabelsd", keys="pred", output_dir="@output_dir"),
            ],
        },
        "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            "amp": False,
        },
        "checkpointloader": {
            "_target_": "CheckpointLoader",
            "load_path": "$os.path.join(@bundle_root, 'models', 'model.pt')",
            "load_dict": {"model": "@network"},
            "map_location": "@device",
        },
        "initialize": ["$@checkpointloader(@evaluator)"],
        "run": [
            part("check_scans", items="@datalist", output_dir="@output_dir"),
            "$@evaluator.run()",
        ],
    }


def _check_inert(*values: Any) -> None:
    for value in values:
        if isinstance(value, str) and value.startswith(_SIGNS):
            raise ConfigError(
                f"the text {value!r} in the network's parameters or preset begins with a sign that "
                "MONAI takes for code; leave the form 'bundle' out"
            )
        if isinstance(value, Mapping):
            _check_inert(*value, *value.values())
        elif isinstance(value, list | tuple):
            _check_inert(*value)


def inert(text: str) -> str:
    """Return a text that MONAI's parser neither runs nor takes for a reference or a file."""
    return f" {text}" if text.startswith(_SIGNS) else text
