"""How large the tensors are that a computation makes."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """Remember the largest tensor that an operation gave: bytes of storage, and elements."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.elements, self.operation = 0, 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
                size = leaf.untyped_storage().nbytes()
                if size > self.bytes:
                    self.bytes, self.operation = size, str(func)
        return result
