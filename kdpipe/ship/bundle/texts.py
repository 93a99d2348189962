"""What a MONAI bundle says of itself: metadata for programs, README for people, logging."""

from __future__ import annotations

from collections.abc import Mapping
from string import Template
from typing import Any

from kdpipe import __version__
from kdpipe.infer.description import Description
from kdpipe.provenance import PACKAGE
from kdpipe.ship.bundle.configs import inert

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
VERSION = "1.0.0"
LOGGING = """\
[loggers]
keys=root

[handlers]
keys=consoleHandler

[formatters]
keys=fullFormatter

[logger_root]
level=INFO
handlers=consoleHandler

[handler_consoleHandler]
class=StreamHandler
level=INFO
formatter=fullFormatter
args=(sys.stdout,)

[formatter_fullFormatter]
format=%(asctime)s - %(name)s - %(levelname)s - %(message)s
"""
_README = PACKAGE / "templates" / "bundle_readme.md.txt"


def metadata(
    description: Description,
    versions: Mapping[str, str],
    required: Mapping[str, str],
    optional: Mapping[str, str],
) -> dict[str, Any]:
    """Return ``configs/metadata.json``, as MONAI's schema of 2024-07-25 wants it.

    Args:
        description: of the network.
        versions: of torch, monai and numpy.
        required: package -> version, of what the bundle cannot do without.
        optional: package -> version.
    """
    patch = list(description.patch)
    tensor = {"type": "image", "spatial_shape": patch, "dtype": "float32", "is_patch_data": True}
    windowed = {intensity.kind for intensity in _intensities(description)} == {"window"}
    channels = _numbered(description.channels)
    names = dict(sorted(description.labels.items()))
    outputs = _numbered(_channel_names(description))
    of_ct = {name.upper() for name in description.channels} == {"CT"}
    structures = ", ".join(inert(name) for index, name in names.items() if index)
    name = f"{description.network['name']}{_origin(description.provenance)}"
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "changelog": {VERSION: f"exported by kdpipe {__version__}"},
        "monai_version": versions["monai"],
        "pytorch_version": versions["torch"].partition("+")[0],
        "numpy_version": versions["numpy"],
        "required_packages_version": dict(required),
        "optional_packages": dict(optional),
        "name": inert(name),
        "task": f"Segmentation of {structures}",
        "description": inert(
            f"Segments {structures} by {name}, in {len(patch)}D windows of "
            f"{' x '.join(map(str, patch))} voxels."
        ),
        "authors": "Whoever trained the network; see docs/README.md",
        "copyright": "Code: Apache-2.0, see LICENSE. Weights: of whoever trained them",
        "data_type": "NIfTI, NRRD, MetaImage or pictures",
        "image_classes": inert(", ".join(description.channels)),
        "pred_classes": ", ".join(f"{index}: {name}" for index, name in names.items()),
        "intended_use": "Research. It is no medical device and not for diagnosis.",
        "network_data_format": {
            "inputs": {
                "image": tensor
                | {
                    "format": "hounsfield" if of_ct else "magnitude",
                    "modality": inert(", ".join(description.channels)),
                    "num_channels": len(channels),
                    "value_range": [0, 1] if windowed else [],
                    "channel_def": channels,
                }
            },
            "outputs": {
                "pred": tensor
                | {
                    "format": "segmentation",
                    "num_channels": len(outputs),
                    "value_range": [],
                    "channel_def": outputs,
                }
            },
            "post_processed_outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": 1,
                    "spatial_shape": ["*", "*", "*"],
                    "dtype": "uint8",
                    "value_range": [min(names), max(names)],
                    "is_patch_data": False,
                    "channel_def": {str(index): inert(name) for index, name in names.items()},
                }
            },
        },
    }


def readme(description: Description, content: Mapping[str, Any], package: str) -> str:
    """Return ``docs/README.md``.

    Args:
        description: of the network.
        content: of ``configs/metadata.json``.
        package: name of the copied code.
    """
    channels = "\n".join(f"| {i} | {name} |" for i, name in enumerate(description.channels))
    labels = "\n".join(f"| {i} | {name} |" for i, name in sorted(description.labels.items()))
    several = len(description.channels) > 1
    return Template(_README.read_text(encoding="utf-8")).substitute(
        description=content["description"],
        channels=channels,
        labels=labels,
        names="A scan is `<case>_0000.nii.gz`, `<case>_0001.nii.gz` and so on, one file a "
        "channel,\nor one 4D file `<case>.nii.gz`."
        if several
        else "A scan is `<case>.nii.gz`, or `<case>_0000.nii.gz` as nnU-Net has it.",
        needed=" ".join(["torch", "monai", "numpy", *content["required_packages_version"]]),
        optional=", ".join(content["optional_packages"]) or "none",
        package=package,
        version=__version__,
    )


def _origin(provenance: Mapping[str, Any]) -> str:
    """Say in words where the network comes from, as far as it is known."""
    cell, method = provenance.get("cell", {}), provenance.get("method", {}).get("name", "none")
    data = f" on {cell['dataset']}" if "dataset" in cell else ""
    if method == "none":
        return f", trained{data}"
    teacher = f" from {cell['teacher']}" if "teacher" in cell else ""
    return f", distilled{teacher} with {method}{data}"


def _intensities(description: Description) -> tuple[Any, ...]:
    return description.preparation.intensities(len(description.channels))


def _channel_names(description: Description) -> list[str]:
    """Return what each channel of the logits stands for: a label, or the labels of a region."""
    targets, names = description.decoded, description.labels
    if targets.regions is None:
        return [names.get(index, str(index)) for index in range(targets.n_labels)]
    return [" + ".join(names.get(i, str(i)) for i in region) for region in targets.regions]


def _numbered(names: Any) -> dict[str, str]:
    return {str(index): inert(name) for index, name in enumerate(names)}
