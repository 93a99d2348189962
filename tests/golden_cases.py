"""Golden case id -> the shipped loss function that must give its value. No formula lives here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from kdpipe.methods.cwd import cwd_loss
from kdpipe.methods.kd import kd_loss

CALLS: dict[str, Callable[[dict[str, Tensor], dict[str, Any]], Tensor]] = {
    "kd.kl_voxelmean": lambda x, config: kd_loss(x["s"], x["t"], config["tau"]),
    "kd.kl_voxelmean_t4": lambda x, config: kd_loss(x["s"], x["t"], config["tau"]),
    "kd.kl_view": lambda x, config: kd_loss(x["s"], x["t"], config["tau"]),
    "cwd": lambda x, config: cwd_loss(x["s"], x["t"], config["tau"]),
}
