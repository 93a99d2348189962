"""Shared by the forms: a file's description, and a converter's errors and chatter."""

from __future__ import annotations

import io
import logging
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from kdpipe.errors import ConfigError, DataError
from kdpipe.infer.description import KEY, Description


def description_in(found: str | None, path: Path) -> Description:
    """Return the description from what a file holds under `KEY`.

    Raises:
        DataError: there is none, or it is not usable.
    """
    if not found:
        raise DataError(
            f"{path}: holds no description of kdpipe (under {KEY!r}), so nobody can tell what "
            "images it takes; write it with 'kdpipe export'"
        )
    return Description.from_json(found, path)


def example(description: Description) -> Tensor:
    """Return two windows ``(2, C, *patch)``: of one, exporters would think that it is always one.

    Noise, so that no part of a network can be taken for a constant.
    """
    draw = torch.Generator().manual_seed(0)
    return torch.randn((2, *description.window[1:]), generator=draw)


@contextmanager
def conversion(form: str, description: Description) -> Iterator[None]:
    """Run a converter: without its warnings, and what it raises as a `ConfigError`.

    Raises:
        ConfigError: it cannot convert the network.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        said = io.StringIO()  # torch prints graphs that it cannot follow
        with (
            warnings.catch_warnings(),
            redirect_stdout(said),
            redirect_stderr(said),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            yield
    except ConfigError:
        raise
    except Exception as error:  # whatever a converter of ten thousand operations may raise
        first: BaseException = error
        while first.__cause__ is not None:  # the others are about where it came through
            first = first.__cause__
        reason = str(first).strip().partition("\n")[0] or type(first).__name__
        name = description.network["name"]
        raise ConfigError(
            f"network {name!r} cannot be written in the form {form!r} ({reason[:300]}); leave the "
            f"form out of --forms, or of ship.forms in the configuration"
        ) from error
    finally:
        logging.disable(before)


def copy_without_sources(archive: Path | BinaryIO, path: Path) -> None:
    """Copy a TorchScript archive to `path`, without its notes of source files.

    They name the folders of this machine, and serve the messages of errors only.
    """
    with zipfile.ZipFile(archive) as whole, zipfile.ZipFile(path, "w") as target:
        for member in whole.infolist():
            if not member.filename.endswith(".debug_pkl"):
                target.writestr(member, whole.read(member))


def no_packages(form: str) -> ConfigError:
    """Return the error for a form whose packages are missing."""
    return ConfigError(f"the form {form!r} needs more packages: pip install 'kdpipe[export]'")
