"""What is particular to a cluster: its account, partitions and options, from one small file.

The SLURM profile reads it when Snakemake starts; jobs do not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from kdpipe.errors import ConfigError
from kdpipe.schema import Strict, explain
from kdpipe.yaml_files import load_yaml

#: where the file is looked for, after what the environment names
SITE_FILES = ("~/.config/kdpipe/site.yaml", "workflow/profiles/slurm/site.yaml")


class Site(Strict):
    """A cluster as the SLURM profile sees it."""

    account: str | None = Field(None, description="null: the one of your last jobs")
    qos: str | None = Field(None, description="quality of service")
    extra: str | None = Field(None, description="further options of sbatch")
    jobs: int = Field(100, ge=1, description="at most so many at a time")
    latency_wait: int = Field(60, ge=0, description="seconds that a file may take to be seen")
    accounting: bool = Field(True, description="whether sacct works: the efficiency report")
    partitions: dict[str, dict[str, Any]] = Field(
        {}, description="limits by name, as generate-slurm-partition-config writes them"
    )
    file: str | None = Field(None, description="where this was read from")


def read_site(environment: Mapping[str, str] = os.environ) -> Site:
    """Return the site of ``KDPIPE_SITE``, the user or the checkout, the first that there is.

    ``KDPIPE_SLURM_ACCOUNT`` and ``KDPIPE_SLURM_QOS`` replace what it says.

    Raises:
        ConfigError: the named file is missing, or a file is no valid site.
    """
    named = environment.get("KDPIPE_SITE")
    files = [Path(file).expanduser() for file in ([named] if named else SITE_FILES)]
    file = next((file for file in files if file.is_file()), None)
    if named and file is None:
        raise ConfigError(f"KDPIPE_SITE is {named}, which is no file; name the site's file")
    content: dict[str, Any] = _read(file) if file else {}
    for key in ("account", "qos"):
        if value := environment.get(f"KDPIPE_SLURM_{key.upper()}"):
            content[key] = value
    try:
        return Site.model_validate(content | {"file": str(file) if file else None})
    except ValidationError as error:
        raise ConfigError(f"{file}: {explain(error, Site)}") from None


def _read(file: Path) -> dict[str, Any]:
    try:
        content = load_yaml(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: not readable as YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or "file" in content:
        raise ConfigError(f"{file}: 'account: NAME' and the like expected; see docs/cluster.md")
    return content


def as_text(value: str) -> str:
    """Quote a resource, which Snakemake would otherwise take for a Python expression."""
    return repr(value)
