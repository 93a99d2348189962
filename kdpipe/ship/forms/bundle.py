"""A MONAI bundle, laid out as in the Model Zoo: MONAI's command line segments raw scans with it.

It is a folder that needs no kdpipe: preparation, windows and way back are copies of kdpipe's own
code (`kdpipe.ship.bundle.code`), so its label maps are those of ``kdpipe predict``. `read` runs
none of that code: it builds the network from the description in ``configs/kdpipe.json``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata, util
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from kdpipe import discover
from kdpipe.atomic import atomic_path, write_json, write_text
from kdpipe.errors import ConfigError, DataError
from kdpipe.infer.description import KEY, Description
from kdpipe.infer.model import TrainedModel, read_tensors
from kdpipe.infer.window import Network
from kdpipe.nets.base import build_network
from kdpipe.provenance import PACKAGE
from kdpipe.ship.bundle import configs, texts
from kdpipe.ship.bundle.code import copy_code, packages
from kdpipe.ship.forms._common import (
    conversion,
    copy_without_sources,
    description_in,
    example,
)

FILE = "bundle"
DESCRIPTION = f"configs/{KEY}.json"
WEIGHTS = "models/model.pt"
_ERROR = re.compile(r"[\w.]+(Error|Exception): ")
_RUNNERS = {"ignite": "pytorch-ignite", "fire": "fire"}
_LICENCE = "Apache License 2.0: http://www.apache.org/licenses/LICENSE-2.0\n"


def write(
    trained: TrainedModel, description: Description, path: Path, windows: Sequence[np.ndarray]
) -> None:
    """Write the bundle, a folder; see `kdpipe.ship.forms`.

    Raises:
        ConfigError: the network is another project's, so its code cannot be carried; or a text in
            its parameters is one that MONAI would run.
    """
    name = description.network["name"]
    _check_own(name)
    package = copy_code(name, path / "code")
    config = configs.inference(description, package)
    versions = {library: metadata.version(library) for library in ("torch", "monai", "numpy")}
    meta = texts.metadata(description, versions, *packages(name, trained.network))
    write_json(path / "configs" / "metadata.json", meta)
    _write_ordered(path / "configs" / "inference.json", config)
    write_text(path / "configs" / "logging.conf", texts.LOGGING)
    write_text(path / DESCRIPTION, description.to_json() + "\n")
    write_text(path / "docs" / "README.md", texts.readme(description, meta, package))
    for folder in (path, path / "code" / package):
        write_text(folder / "LICENSE", _licence())
    weights = {key: value.cpu() for key, value in trained.network.state_dict().items()}
    with atomic_path(path / WEIGHTS) as temporary:
        torch.save(weights, temporary)
    with suppress(ConfigError):  # a network that cannot be traced is in model.pt all the same
        _write_torchscript(trained, description, path / "models" / "model.ts", meta, config)


def read(path: Path, device: torch.device) -> tuple[Network, Description]:
    """Return the network and its description; see `kdpipe.ship.forms`.

    Neither the bundle's code nor the expressions in its configurations are run.
    """
    file = path / DESCRIPTION
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None
    if text is None:
        raise DataError(
            f"{path}: no bundle of kdpipe, as {DESCRIPTION} is not there; one of another project "
            "is run by 'python -m monai.bundle', or taken over as the teacher 'monai_bundle'"
        )
    description = description_in(text, file)
    spec = description.network
    try:
        _check_own(spec["name"])
        network = build_network(
            spec["name"],
            spec["params"],
            spec["in_channels"],
            spec["out_channels"],
            len(description.patch),
        )
        network.load_state_dict(read_tensors(path / WEIGHTS))
    except (ConfigError, RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{path}: {WEIGHTS} does not hold the network of {DESCRIPTION} ({reason}); export it "
            "again"
        ) from None
    return network.eval().requires_grad_(False).to(device), description


def check_raw(
    path: Path, files: Mapping[str, Sequence[Path]], expected: Mapping[str, sitk.Image]
) -> float:
    """Run the bundle by MONAI's command line on raw scans, on the CPU, as its users will.

    Args:
        path: of the bundle.
        files: case -> its raw files, one, or one a channel.
        expected: case -> its label map, on the native grid.

    Returns:
        The share of voxels, of all cases, with the label that is expected.

    Raises:
        ConfigError: a package that MONAI's command line needs is not installed.
        DataError: the run failed, or a label map lies on another grid.
    """
    missing = [name for module, name in _RUNNERS.items() if util.find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"to run a MONAI bundle {' and '.join(missing)} must be installed: "
            "pip install 'kdpipe[bundle]'"
        )
    same = voxels = 0
    with tempfile.TemporaryDirectory() as folder:
        items = [
            {"image": [str(file.resolve()) for file in files[case]], "case": case}
            for case in sorted(expected)
        ]
        listed, out = Path(folder, "datalist.json"), Path(folder, "out")
        write_json(listed, items)
        _run(path, listed, out)
        for case, labels in expected.items():
            found = sitk.ReadImage(str(out / f"{case}.nii.gz"))
            if found.GetSize() != labels.GetSize():
                raise DataError(
                    f"{path}: the bundle's label map of case {case!r} is of {found.GetSize()} "
                    f"voxels, {labels.GetSize()} are expected"
                )
            equal = sitk.GetArrayViewFromImage(found) == sitk.GetArrayViewFromImage(labels)
            same, voxels = same + int(equal.sum()), voxels + equal.size
    return same / voxels


def _run(path: Path, datalist: Path, out: Path) -> None:
    command = [sys.executable, "-m", "monai.bundle", "run"]
    options = {
        "meta_file": "configs/metadata.json",
        "config_file": "configs/inference.json",
        "logging_file": "configs/logging.conf",
        "bundle_root": ".",
        "datalist": f"%{datalist}",
        "output_dir": str(out),
        "device": "cpu",
    }
    for name, value in options.items():
        command += [f"--{name}", value]
    # what Python and numba compile is of this machine, and stays out of the bundle
    environment = os.environ | {
        "PYTHONDONTWRITEBYTECODE": "1",
        "NUMBA_CACHE_DIR": str(out.parent),
    }
    done = subprocess.run(
        command, cwd=path, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it says nothing"]
        reason = next((line for line in lines if _ERROR.match(line)), lines[-1])  # the first cause
        raise DataError(f"{path}: MONAI could not run the bundle: {reason}")


def _check_own(name: str) -> None:
    """Raise ConfigError for a network that is read from files of another project."""
    if discover.constant("nets", name, "TRAINED", False):
        raise ConfigError(
            f"network {name!r} is another project's, whose code a bundle cannot carry; leave the "
            "form 'bundle' out"
        )


def _write_torchscript(
    trained: TrainedModel,
    description: Description,
    path: Path,
    meta: Mapping[str, object],
    config: Mapping[str, object],
) -> None:
    """Write the network as MONAI's own ``ckpt_export`` does, with the configurations inside."""
    from monai.data.torchscript_utils import save_net_with_metadata

    extra = {"inference.json": json.dumps(config).encode()}
    with conversion("bundle", description), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        program = torch.jit.trace(trained.network, example(description), check_trace=False)
        # under its own name: readers look for the configurations below the file's name
        whole = Path(folder) / path.name
        save_net_with_metadata(program, str(whole), False, False, meta, extra)
        copy_without_sources(whole, path)


def _write_ordered(path: Path, content: Mapping[str, object]) -> None:
    """Write JSON in the order in which people read a configuration."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def _licence() -> str:
    """Return the text of kdpipe's licence, from the checkout or the installed package."""
    file = PACKAGE.parent / "LICENSE"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = metadata.distribution("kdpipe").read_text(os.path.join("licenses", "LICENSE"))
    return found or _LICENCE
