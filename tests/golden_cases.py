"""Golden case id -> the shipped loss function that must give its value. No formula lives here.

What is given: the tensors of the case by name (targets ``y`` as ``(B, 1, *S)`` for classes,
``(B, C, *S)`` for regions; weights and queues of modules) and its configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.methods import cirkd, hlfd
from kdpipe.methods.acfd import Correction, map_loss
from kdpipe.methods.at import at_loss
from kdpipe.methods.base import Context, Outputs, Progress, TapSpec
from kdpipe.methods.cakd import cakd_loss, fnkd_loss
from kdpipe.methods.cwd import cwd_loss
from kdpipe.methods.dist import inter_loss, intra_loss
from kdpipe.methods.dkd import nckd_loss, tckd_loss
from kdpipe.methods.emkd import imd_loss, rad_loss
from kdpipe.methods.ft import factor_loss, factor_network
from kdpipe.methods.hbd import hbd_loss
from kdpipe.methods.ifvd import ifvd_loss
from kdpipe.methods.kd import kd_loss
from kdpipe.methods.kd_mse_sigmoid import sigmoid_mse_loss
from kdpipe.methods.nkd import nontarget_loss, target_loss
from kdpipe.methods.sbd import sbd_loss
from kdpipe.methods.skd import pair_loss, pixel_loss
from kdpipe.terms.adapters import pointwise
from kdpipe.terms.features import normalised, pool_to
from kdpipe.terms.masks import class_masks, resize_target
from kdpipe.terms.segmentation import focal, focal_dice, foreground_dice


def _acfd(x: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    names = {
        "attention.squeeze": "1",
        "attention.excite": "2",
        "attention.spatial": "s",
        "convert": "c",
    }
    weights = {f"{layer}.weight": x[f"w{name}"] for layer, name in names.items()}
    weights |= {f"{layer}.bias": x[f"b{name}"] for layer, name in names.items()}
    module = Correction(x["fs"].ndim - 2, x["fs"].shape[1])
    corrected, factor = torch.func.functional_call(module, weights, (x["fs"],))
    scale = config.get("at_weight", 25000.0)
    afd = config.get("alpha", 1) * map_loss(corrected, x["ft"], "mean")
    return scale * (afd + config.get("beta", 1) * map_loss(factor, x["rt"], "mean"))


def _hbd(x: dict[str, Tensor], config: dict[str, Any], reduction: str = "sum") -> Tensor:
    regions = not config.get("one_hot_target", True)
    target = x["y"].long() if regions else x["y"].squeeze(1)
    background = config.get("include_background", True)
    tau = config.get("tau", 1.0)
    return hbd_loss(x["s"], x["t"], target, tau, regions, background, reduction)


def _sbd(x: dict[str, Tensor], config: dict[str, Any], **settings: Any) -> Tensor:
    return sbd_loss(x["s"], x["t"], config.get("alpha", 2.0), **settings)


#: the published names of HLFD's stages -> our taps
_HLFD_TAPS = {f"e{i}": f"enc{i}" for i in range(1, 5)} | {"e5": "bottleneck", "out": "logits"}
_HLFD_TAPS |= {"d5": "dec1", "d4": "dec2", "d3": "dec3", "d2": "dec4"}


def _projected(x: dict[str, Tensor], feature: Tensor) -> Tensor:
    """The feature through our adapter with the weights of the case."""
    weight, bias = x["cw0"], x["cb0"]
    adapter = pointwise(feature.ndim - 2, weight.shape[1], weight.shape[0], bias=True)
    return torch.func.functional_call(adapter, {"weight": weight, "bias": bias}, (feature,))


def _hlfd_method(x: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    """The sum of the terms of the whole method, near parity."""
    sides: dict[str, dict[str, Tensor]] = {"s": {}, "t": {}}
    for key, tensor in x.items():
        side, _, stage = key.partition("_")
        if stage:
            sides[side][_HLFD_TAPS[stage]] = tensor
    logits = sides["t"].pop("logits")
    shapes = [
        {tap: TapSpec(tensor.shape[1], (1.0,)) for tap, tensor in features.items()}
        for features in (sides["s"], sides["t"])
    ]
    unused = {tap: TapSpec(1, (1.0,)) for tap in ("bottleneck", "enc1", "dec4")}
    context = Context(logits.shape[1], logits.ndim - 2, unused | shapes[0], unused | shapes[1])
    params = hlfd.Params(adapters="frozen", normalisation="published", scale="raw")
    method = hlfd.Method(params, context)
    weights = {
        f"adapters.{key.removeprefix(start)}.{name}": tensor
        for start, name in (("cw", "weight"), ("cb", "bias"))
        for key, tensor in x.items()
        if key.startswith(start)
    }
    student, teacher = Outputs(logits, sides["s"]), Outputs(logits, sides["t"])
    arguments = (student, teacher, logits.argmax(1), Progress(0, 1, 0, 1))
    terms = torch.func.functional_call(method, weights, arguments, strict=True)
    return torch.stack(list(terms.values())).sum()


_DKD = {"tau": 4.0, "alpha": 1.0, "beta": 8.0, "loss_weight": 1.0}


def _elements(x: dict[str, Tensor], config: dict[str, Any], tau_squared: bool) -> Tensor:
    return kd_loss(x["s"], x["t"], config["tau"], False, "elements", tau_squared)


def _at(x: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    return config["loss_weight"] * at_loss(x["fs"], x["ft"], reduction="mean")


def _dist(x: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    pair = (x["s"], x["t"], config["tau"])
    return inter_loss(*pair) + intra_loss(*pair)


def _dkd(x: dict[str, Tensor], config: dict[str, Any], regions: bool = False) -> Tensor:
    numbers = _DKD | config
    target = x["y"] if regions else x["y"].squeeze(1)
    settings = (x["s"], x["t"], target, numbers["tau"], regions)
    loss = 0.0
    if numbers["alpha"]:
        loss = loss + numbers["alpha"] * tckd_loss(*settings)
    if numbers["beta"]:
        loss = loss + numbers["beta"] * nckd_loss(*settings)
    return numbers["loss_weight"] * loss


def _nkd(x: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    ours, theirs, target = x["s"], x["t"], x["y"].squeeze(1)
    rest = nontarget_loss(ours, theirs, target, config["temp"])
    return target_loss(ours, theirs, target) + config["gamma"] * rest


def _cakd(x: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    return cakd_loss(x["s"], x["t"])


def _fnkd(x: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    return fnkd_loss(x["s"], x["t"], x["fs"], x["ft"], norm="tensor")


def _factor(x: dict[str, Tensor], feature: str, kind: str, norm: bool) -> Tensor:
    places = (0, 3, 6) if norm else (0, 2, 4)  # of the convolutions among the layers
    given = {}
    for place, index in zip(places, (0, 3, 6), strict=True):
        given[f"{place}.weight"] = x[f"{kind}{index}"]
        given[f"{place}.bias"] = x[f"{kind}b{index}"]
    inputs, dims = x[feature].shape[1], x[feature].ndim - 2
    network = factor_network(dims, inputs, len(x[f"{kind}6"]), norm).to(x[feature].dtype)
    return torch.func.functional_call(network, given, (x[feature],))


def _cirkd_batch(x: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    half = [side // 2 for side in x["fs"].shape[2:]]
    student, teacher = pool_to(x["fs"], half).flatten(2), pool_to(x["ft"], half).flatten(2)
    single = config.get("single_batch", False)
    return cirkd.batch_relation_loss(student, teacher, config["temperature"], single)


def _cirkd_memory(x: dict[str, Tensor], enqueue: bool) -> Tensor:
    classes, pixels, channels = x["qp"].shape
    params = cirkd.Params(pixel_queue=pixels, region_queue=x["qr"].shape[1], keys=pixels)
    dims = x["fs"].ndim - 2
    memory = cirkd.Memory(dims, x["fs"].shape[1], channels, classes, params).to(x["fs"].dtype)
    memory.pixel_queue.keys.copy_(F.normalize(x["qp"], dim=2))
    memory.region_queue.keys.copy_(F.normalize(x["qr"], dim=2))
    half = [side // 2 for side in x["fs"].shape[2:]]
    units = normalised(pool_to(x["ft"], half), dim=1, eps=1e-7)
    masks = class_masks(resize_target(x["y"][:, 0], half, False), classes, False)
    masks[:, 0] = False  # the official queue of the background is never filled
    if enqueue:
        memory.enqueue_regions(units, masks)
    weights = {"project.0.weight": x["p0"], "project.3.weight": x["p3"]}
    terms = torch.func.functional_call(memory, weights, (pool_to(x["fs"], half), units, masks))
    return terms["pixel"] + terms["region"]


CALLS: dict[str, Callable[[dict[str, Tensor], dict[str, Any]], Tensor]] = {
    "acf.acfd": _acfd,
    "acf.afd_only": _acfd,
    "acf.cfd_only": _acfd,
    "acf.acfd_resize": _acfd,
    "acf.hbd_softmax": _hbd,
    "acf.hbd_softmax_nobg": _hbd,
    "acf.hbd_sigmoid": _hbd,
    "acf.hbd_v3": lambda x, config: _hbd(x, config, "mean"),
    "acf.sbd_softmax": _sbd,
    "acf.sbd_sigmoid": lambda x, config: _sbd(x, config, regions=True),
    "acf.sbd_2d": _sbd,
    "acf.hd_nolog": lambda x, config: _sbd(x, config, log=False),
    "hlfd.seg": lambda x, config: focal_dice(x["s"], x["m"][:, 0]),
    "hlfd.focal": lambda x, config: focal(x["s"], x["m"][:, 0]),
    "hlfd.dice": lambda x, config: foreground_dice(x["s"], x["m"][:, 0]),
    "hlfd.pmd": lambda x, config: hlfd.pixel_loss(
        _projected(x, x["s"]), x["t"], normalisation="published"
    ),
    "hlfd.pmd_rec": lambda x, config: hlfd.pixel_loss(
        x["s"],
        _projected(x, hlfd.joined([x["t0"], x["t1"], x["t2"]])),
        on="student",
        normalisation="published",
    ),
    "hlfd.pmd_cat": lambda x, config: hlfd.pixel_loss(
        _projected(x, hlfd.joined([x["s0"], x["s1"]])), x["t"], normalisation="published"
    ),
    "hlfd.imd": lambda x, config: hlfd.feature_loss(x["s"], x["t"]),
    "hlfd.imd_rec": lambda x, config: hlfd.feature_loss(
        x["s"], hlfd.joined([x["t0"], x["t1"], x["t2"]]), on="student"
    ),
    "hlfd.imd_cat": lambda x, config: hlfd.feature_loss(hlfd.joined([x["s0"], x["s1"]]), x["t"]),
    "hlfd.total_kd": _hlfd_method,
    "emkd.pmd": lambda x, config: config["loss_weight"] * kd_loss(x["s"], x["t"], config["tau"]),
    "emkd.imd": lambda x, config: config["loss_weight"] * imd_loss(x["fs"], x["ft"], config["exp"]),
    "emkd.imd_resize": lambda x, config: (
        config["loss_weight"] * imd_loss(x["fs"], x["ft"], config["exp"])
    ),
    "emkd.rad": lambda x, config: (
        config["loss_weight"]
        * rad_loss(x["fs"], x["ft"], x["y"][:, 0], config["num_classes"], "published")
    ),
    "emkd.rad_multilabel": lambda x, config: (
        config.get("loss_weight", 0.9)
        * rad_loss(x["fs"], x["ft"], x["y"], x["y"].shape[1], "published")
    ),
    "kd.sigmoid_mse": lambda x, config: config["loss_weight"] * sigmoid_mse_loss(x["s"], x["t"]),
    "kd.kl_elementmean": lambda x, config: _elements(x, config, False),
    "kd.kl_tau30": lambda x, config: _elements(x, config, True),
    "kd.kl_voxelmean": lambda x, config: kd_loss(x["s"], x["t"], config["tau"]),
    "kd.kl_voxelmean_t4": lambda x, config: kd_loss(x["s"], x["t"], config["tau"]),
    "kd.kl_view": lambda x, config: kd_loss(x["s"], x["t"], config["tau"]),
    "at": _at,
    "at.resize": _at,
    "at.2d": _at,
    "cwd": lambda x, config: cwd_loss(x["s"], x["t"], config["tau"]),
    "dist": _dist,
    "dist.tau1": _dist,
    "dkd": _dkd,
    "dkd.tckd": lambda x, config: _dkd(x, config | {"alpha": 1.0, "beta": 0.0}),
    "dkd.nckd": lambda x, config: _dkd(x, config | {"alpha": 0.0, "beta": 1.0}),
    "dkd.multilabel": lambda x, config: _dkd(x, config, regions=True),
    "nkd": _nkd,
    "mskdcakd": lambda x, config: _cakd(x, config) + _fnkd(x, config),
    "cakd": _cakd,
    "cakd.small": _cakd,
    "fnkd": _fnkd,
    "fnkd.small": _fnkd,
    "ft": lambda x, config: factor_loss(
        _factor(x, "fs", "t", norm=True), _factor(x, "ft", "p", norm=False), "mean"
    ),
    "skd.pixel": lambda x, config: (
        config["loss_weight"] * pixel_loss(x["s"], x["t"], reduction="batch_sum")
    ),
    "skd.pair": lambda x, config: pair_loss(x["fs"], x["ft"], round(1 / config["scale"])),
    "skd.pair_scale_quarter": lambda x, config: pair_loss(
        x["fs"], x["ft"], round(1 / config["scale"])
    ),
    "ifvd": lambda x, config: (
        config["loss_weight"] * ifvd_loss(x["fs"], x["ft"], x["y"].squeeze(1), config["classes"])
    ),
    "cirkd.minibatch_single": _cirkd_batch,
    "cirkd.minibatch_full": _cirkd_batch,
    "cirkd.minibatch_t01": _cirkd_batch,
    "cirkd.memory": lambda x, config: _cirkd_memory(x, enqueue=False),
    "cirkd.memory_region_enqueue": lambda x, config: _cirkd_memory(x, enqueue=True),
}
