"""The forms that a network is exported to: the same values, a description, clear errors."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets.zoo import networks
from ship.models import noise, small_model, turned
from torch import Tensor, nn
from torch.nn import functional

from kdpipe.errors import ConfigError, DataError
from kdpipe.infer.description import KEY, Description
from kdpipe.infer.model import TrainedModel
from kdpipe.ship.forms import FORMS, load_form
from kdpipe.ship.forms._translations import averages

CPU = torch.device("cpu")
TORCH_FORMS = ("torchscript", "program")
ONNX_FORMS = ("onnx", "int8")
MINE = (*ONNX_FORMS, *TORCH_FORMS)
every_form = pytest.mark.parametrize("form", MINE)


def written(form: str, trained: TrainedModel, description: Description, folder: Path) -> Path:
    path = folder / load_form(form).FILE
    load_form(form).write(trained, description, path, list(noise(description, 4)))
    return path


def difference(form: str, path: Path, trained: TrainedModel, description: Description) -> float:
    """Largest difference of logits, in batches of one and of three; the description is the same."""
    network, found = load_form(form).read(path, CPU)
    assert found.to_json() == description.to_json()
    apart = []
    for count in (1, 3):
        windows = torch.from_numpy(noise(description, count, seed=count))
        with torch.inference_mode():
            expected, logits = trained.network(windows), network(windows)
        assert logits.shape == expected.shape and logits.dtype == torch.float32
        apart.append(float((logits - expected).abs().max()))
    return max(apart)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny network in all forms."""
    folder = tmp_path_factory.mktemp("forms")
    return {form: written(form, *small_model("unet_tiny"), folder) for form in MINE}


def test_each_form_has_a_file_of_its_own() -> None:
    assert len({load_form(form).FILE for form in MINE}) == len(MINE)
    assert set(MINE) < set(FORMS)
    with pytest.raises(ConfigError, match=r"'onx'.*did you mean 'onnx'"):
        load_form("onx")


@every_form
def test_values_are_those_of_torch(form: str, tiny: dict[str, Path]) -> None:
    apart = difference(form, tiny[form], *small_model("unet_tiny"))
    assert apart <= {"onnx": 1e-5, "int8": 0.3}.get(form, 0.0)
    assert (apart > 1e-3) == (form == "int8")


# kinds of their own: adaptive pooling, places of maxima, slices; the others are `make soak`
@pytest.mark.parametrize("name", ["espnetv2", "enet", "mobilenetv2"])
def test_some_networks_can_be_traced(name: str, tmp_path: Path) -> None:
    test_every_network_can_be_traced(name, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("name", networks())
def test_every_network_can_be_traced(name: str, tmp_path: Path) -> None:
    trained, description = small_model(name)
    path = written("torchscript", trained, description, tmp_path)
    assert difference("torchscript", path, trained, description) <= 1e-6


@pytest.mark.parametrize("form", ["onnx", "program"])
@pytest.mark.parametrize("name", ["segresnet", "unet"])  # those that take a second
def test_some_networks_have_every_form(name: str, form: str, tmp_path: Path) -> None:
    test_every_network_has_every_form(name, form, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("form", ["onnx", "int8", "program"])
@pytest.mark.parametrize("name", networks())
def test_every_network_has_every_form(name: str, form: str, tmp_path: Path) -> None:
    trained, description = small_model(name)
    path = written(form, trained, description, tmp_path)
    apart = difference(form, path, trained, description)
    assert np.isfinite(apart) if form == "int8" else apart <= 1e-4


# --- ONNX ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "bins"), [(5, 3), (6, 3), (3, 5), (16, 5), (7, 1), (4, 4)])
def test_averages_are_those_of_translations_pooling(length: int, bins: int) -> None:
    signal = torch.randn(1, 2, length, generator=torch.Generator().manual_seed(0))
    expected = functional.adaptive_avg_pool1d(signal, bins)
    found = signal @ torch.from_numpy(averages(length, bins))
    torch.testing.assert_close(found, expected)


class Pooled(nn.Module):
    """Adaptive pooling to grids that divide the image's, that do not, and to a finer one."""

    def forward(self, image: Tensor) -> Tensor:
        flat = image.dim() == 4
        pool = functional.adaptive_avg_pool2d if flat else functional.adaptive_avg_pool3d
        sides = image.shape[2:]
        sizes = ((4, 6, 2), (5, 12, 3), (1, 1, 1), (13, 5, 4))
        pooled = [pool(image, size[: len(sides)]) for size in sizes]
        return torch.cat([functional.interpolate(part, tuple(sides)) for part in pooled], 1)


@pytest.mark.parametrize("patch", [(8, 12, 4), (8, 12)])
def test_adaptive_pooling(patch: tuple[int, ...], tmp_path: Path) -> None:
    _, description = small_model("unet_tiny")
    spec = {**description.network, "out_channels": 8}
    fitted = Description(**{**vars(description), "network": spec, "patch": patch})
    trained = TrainedModel(Pooled().eval(), {}, {})
    path = written("onnx", trained, fitted, tmp_path)
    assert difference("onnx", path, trained, fitted) <= 1e-6


class Normed(nn.Module):
    """Norms and a mean over all voxels of an image whose values are far from 0."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled = nn.InstanceNorm3d(2, affine=True)
        self.plain = nn.InstanceNorm3d(2)
        self.grouped = nn.GroupNorm(1, 2)
        self.tracked = nn.InstanceNorm3d(2, affine=True, track_running_stats=True)
        torch.manual_seed(0)
        with torch.no_grad():
            for value in self.parameters():
                value.uniform_(0.5, 1.5)
            self.tracked.running_mean.uniform_(), self.tracked.running_var.uniform_(0.5, 1)

    def forward(self, image: Tensor) -> Tensor:
        image = image + 5
        mean = image.mean((2, 3, 4), keepdim=True)
        norms = (self.scaled, self.plain, self.grouped, self.tracked)
        return torch.cat([*(norm(image) for norm in norms), image + mean], 1)


def test_norms_of_large_windows_are_as_exact_as_torchs(tmp_path: Path) -> None:
    _, description = small_model("unet_tiny")
    spec = {**description.network, "out_channels": 10}
    fitted = Description(**{**vars(description), "network": spec, "patch": (80, 80, 80)})
    path = written("onnx", TrainedModel(Normed().eval(), {}, {}), fitted, tmp_path)
    network, _ = load_form("onnx").read(path, CPU)
    window = torch.from_numpy(noise(fitted, 1))
    with torch.inference_mode():
        exact = Normed().eval().double()(window.double())
        apart = (network(window) - exact).abs().max()
    assert apart <= 5e-6  # 1e-4 by onnxruntime's own InstanceNormalization


def test_first_and_last_layers_stay_in_float(tiny: dict[str, Path]) -> None:
    import onnx

    nodes = onnx.load(tiny["int8"]).graph.node
    made_by = {name: node for node in nodes for name in node.output}
    convs = [node for node in nodes if node.op_type in ("Conv", "ConvTranspose")]
    rounded = [
        name in made_by and made_by[name].op_type == "DequantizeLinear"
        for name in (conv.input[1] for conv in convs)
    ]
    assert rounded[0] is False and rounded[-1] is False
    assert [node.op_type for node, done in zip(convs, rounded, strict=True) if done] == ["Conv"] * 2
    assert tiny["int8"].stat().st_size < tiny["onnx"].stat().st_size


def test_thin_layers_stay_in_float() -> None:
    """A chain: the first layer, a depth-wise one, two thick ones, a grouped one, the last."""
    from onnx import TensorProto, helper, numpy_helper

    from kdpipe.ship.forms.int8 import _kept

    shapes = {
        "first": (16, 16),
        "depthwise": (16, 1),
        "thick": (16, 16),
        "grouped": (16, 4),
        "wide": (16, 8),
        "last": (3, 16),
    }
    nodes, weights, before = [], [], "image"
    for name, shape in shapes.items():
        weights.append(numpy_helper.from_array(np.zeros((*shape, 3, 3), np.float32), f"w_{name}"))
        nodes.append(helper.make_node("Conv", [before, f"w_{name}"], [f"raw_{name}"], name=name))
        nodes.append(helper.make_node("Relu", [f"raw_{name}"], [name], name=f"relu_{name}"))
        before = name
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("image", "last")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    assert _kept(graph) == ["depthwise", "first", "grouped", "last"]


def test_eight_bits_need_windows(tmp_path: Path) -> None:
    trained, description = small_model("unet_tiny")
    with pytest.raises(ConfigError, match="calibrated on training cases"):
        load_form("int8").write(trained, description, tmp_path / "model.int8.onnx", [])


@pytest.mark.parametrize("form", ONNX_FORMS)
def test_sessions_take_torchs_threads_and_say_nothing(
    form: str,
    tiny: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import onnxruntime

    seen: list[Any] = []

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, path: Any, options: Any, **given: Any) -> None:
            seen.append((options.intra_op_num_threads, given["providers"]))
            super().__init__(path, options, **given)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        network, description = load_form(form).read(tiny[form], CPU)
    finally:
        torch.set_num_threads(before)
    network(torch.zeros(description.window))
    assert seen == [(2, ["CPUExecutionProvider"])]
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("default::FutureWarning", "default::UserWarning")
def test_writing_and_reading_says_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    for form in MINE:
        load_form(form).read(written(form, *small_model("unet_tiny"), tmp_path), CPU)
    assert capfd.readouterr() == ("", "")
    hidden = (DeprecationWarning, PendingDeprecationWarning)  # as Python's own filters have it
    assert [entry for entry in recwarn.list if not issubclass(entry.category, hidden)] == []


# --- what else is in the files ------------------------------------------------------------------


@every_form
def test_no_folder_of_this_machine_is_in_a_file(form: str, tiny: dict[str, Path]) -> None:
    contents = [tiny[form].read_bytes()]
    if zipfile.is_zipfile(tiny[form]):
        with zipfile.ZipFile(tiny[form]) as archive:
            contents += [archive.read(name) for name in archive.namelist()]
    here = {str(Path(torch.__file__).parents[1]), str(Path(__file__).parents[2])}
    for content in contents:
        for folder in here:
            assert folder.encode() not in content


@every_form
def test_damaged_files_are_named(form: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    whole = tiny[form].read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no network at all"):
        path = tmp_path / tiny[form].name
        path.write_bytes(content)
        with pytest.raises(DataError) as error:
            load_form(form).read(path, CPU)
        assert str(path) in str(error.value) and "kdpipe export" in str(error.value)


@pytest.mark.parametrize("form", ["torchscript", "program"])
def test_a_bit_that_turned_is_seen(form: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / tiny[form].name
    path.write_bytes(turned(tiny[form].read_bytes()))
    with pytest.raises(DataError, match=r"model\.\w+: no .* \(wrong checksum of .*kdpipe export"):
        load_form(form).read(path, CPU)


def without_description(form: str, path: Path, content: bytes) -> Path:
    """Write the file with another description, or with none."""
    if form in ONNX_FORMS:
        import onnx

        model = onnx.load_from_string(content)
        onnx.helper.set_model_props(model, {})
        onnx.save(model, path)
        return path
    with zipfile.ZipFile(io.BytesIO(content)) as whole, zipfile.ZipFile(path, "w") as target:
        for member in whole.infolist():
            if not member.filename.endswith(f"extra/{KEY}"):
                target.writestr(member, whole.read(member))
    return path


@every_form
def test_a_file_of_another_program_has_no_description(
    form: str, tiny: dict[str, Path], tmp_path: Path
) -> None:
    path = without_description(form, tmp_path / tiny[form].name, tiny[form].read_bytes())
    with pytest.raises(DataError, match="holds no description of kdpipe"):
        load_form(form).read(path, CPU)


@pytest.mark.parametrize(("key", "value"), [("patch", (8, 8, 8)), ("channels", ("CT",))])
def test_a_description_of_another_network_is_seen(
    key: str, value: tuple[Any, ...], tiny: dict[str, Path], tmp_path: Path
) -> None:
    import onnx

    _, description = small_model("unet_tiny")
    other = Description(**{**vars(description), key: value})
    model = onnx.load(tiny["onnx"])
    onnx.helper.set_model_props(model, {KEY: other.to_json()})
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    with pytest.raises(DataError, match="by its description windows"):
        load_form("onnx").read(path, CPU)


@pytest.mark.parametrize(
    ("form", "package"), [("onnx", "onnxscript"), ("int8", "onnx"), ("int8", "onnxruntime")]
)
def test_missing_packages_are_named(
    form: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"pip install 'kdpipe\[export\]'"):
        written(form, *small_model("unet_tiny"), tmp_path)


class Undecided(nn.Module):
    """What it does depends on the values."""

    def forward(self, image: Tensor) -> Tensor:
        return image if image.mean() > 0 else -image


@pytest.mark.parametrize("form", ["onnx", "int8", "program"])
def test_a_network_that_cannot_have_a_form(
    form: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, description = small_model("unet_tiny")
    trained = TrainedModel(Undecided().eval(), {}, {})
    said = rf"'unet_tiny' cannot be written in the form '{form}' \(.*data-dependent.*--forms"
    with pytest.raises(ConfigError, match=said):
        written(form, trained, description, tmp_path)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
