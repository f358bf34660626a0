"""Linear layers by oneDNN compute what torch's do, wherever they are used."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from instructblip.modeling import onednn_linear
from instructblip.modeling.onednn_linear import OneDNNLinear, linear, use_onednn

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def _everywhere(monkeypatch):
    monkeypatch.setattr(onednn_linear, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(onednn_linear, "SMALLEST", 1)


class Products(TorchDispatchMode):
    """Counts products by oneDNN and by others."""

    def __init__(self):
        super().__init__()
        self.onednn = self.others = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.onednn += func is torch.ops.mkldnn._linear_pointwise.default
        self.others += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return func(*args, **(kwargs or {}))


def _counted(run):
    with Products() as products:
        run()
    return products.onednn, products.others


INPUTS = {
    "rows": lambda: torch.randn(30, 64),
    "one row": lambda: torch.randn(64),
    "batches": lambda: torch.randn(3, 10, 64),
    "transposed": lambda: torch.randn(10, 3, 64).transpose(0, 1),
    "every other": lambda: torch.randn(30, 128)[:, ::2],
    "one row shown as many": lambda: torch.randn(1, 10, 64).expand(3, -1, -1),
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_torch(name, bias):
    layer = nn.Linear(64, 48, bias=bias)
    other = copy.deepcopy(layer)
    use_onednn(other)
    assert type(other) is OneDNNLinear
    hidden = INPUTS[name]().requires_grad_()
    expected, found = layer(hidden), other(hidden)
    torch.testing.assert_close(found, expected)
    for gradient in (torch.randn_like(expected), torch.ones(()).expand_as(expected)):
        wanted = torch.autograd.grad(expected, [hidden, *layer.parameters()], gradient, retain_graph=True)
        given = torch.autograd.grad(found, [hidden, *other.parameters()], gradient, retain_graph=True)
        torch.testing.assert_close(given, wanted)
    with torch.no_grad():
        torch.testing.assert_close(other(hidden), expected)
    assert _counted(lambda: other(hidden).sum().backward()) == (3, 0)


def test_a_frozen_layer_keeps_its_weight_alone_and_has_one_product_in_the_backward_pass():
    layer = nn.Linear(64, 48).requires_grad_(False)
    use_onednn(layer)
    kept = []
    hidden = torch.randn(30, 64, requires_grad=True)
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        output = layer(hidden)
    assert [tensor.data_ptr() for tensor in kept] == [layer.weight.data_ptr()]
    assert _counted(output.sum().backward) == (1, 0)
    assert layer.weight.grad is None
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        assert not layer(hidden.detach()).requires_grad


class Wrapped(torch.Tensor):
    """A tensor of another kind, as quantized and sharded ones are."""


@pytest.mark.parametrize(
    ("hidden", "weight"),
    [
        (torch.randn(8, 16, dtype=torch.float64), torch.randn(4, 16, dtype=torch.float64)),
        (torch.randn(8, 16).bfloat16(), torch.randn(4, 16).bfloat16()),
        (torch.randn(8, 16, device="meta"), torch.randn(4, 16, device="meta")),
        (torch.randn(0, 16), torch.randn(4, 16)),
        (torch.randn(8, 16), torch.randn(4, 16).as_subclass(Wrapped)),
        (torch.randn(8, 16).as_subclass(Wrapped), torch.randn(4, 16)),
    ],
    ids=["float64", "bfloat16", "meta", "no rows", "another weight", "another input"],
)
def test_what_onednn_is_not_for_goes_to_torch(hidden, weight):
    assert _counted(lambda: linear(hidden, weight))[0] == 0
    assert linear(hidden, weight).shape == (len(hidden), 4)


def test_small_products_autocast_and_a_switch_go_to_torch(monkeypatch):
    hidden, weight = torch.randn(8, 16), torch.randn(4, 16)
    assert _counted(lambda: linear(hidden, weight)) == (1, 0)
    with monkeypatch.context() as patch:
        patch.setattr("torch.backends.mkldnn.enabled", False)
        assert _counted(lambda: linear(hidden, weight)) == (0, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(hidden, weight).dtype == torch.bfloat16
    monkeypatch.setattr(onednn_linear, "SMALLEST", 8 * 16 * 4 + 1)
    assert _counted(lambda: linear(hidden, weight)) == (0, 1)


@pytest.mark.parametrize("language", ["t5", "llama"])
def test_a_whole_model_goes_by_onednn(language, tiny_model, make_batch, mixed_rows, monkeypatch):
    model = tiny_model(language)
    model.freeze_backbones()
    model.eval()
    use_onednn(model)
    assert not [name for name, module in model.named_modules() if type(module) is nn.Linear]
    batch = make_batch(mixed_rows, language, labels=True)

    def loss_and_gradients():
        loss = model(**batch).loss
        trained = {name: p for name, p in model.named_bridge_parameters() if p.requires_grad}
        return loss, dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))

    with monkeypatch.context() as patch:
        patch.setattr("torch.backends.mkldnn.enabled", False)
        expected, wanted = loss_and_gradients()
    found, given = loss_and_gradients()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-6)
    onednn, others = _counted(loss_and_gradients)
    assert onednn > 50
    assert others == 0


def test_compiled_layers_are_left_to_the_compiler():
    layer = nn.Linear(64, 48)
    use_onednn(layer)
    found = []

    def remember(graph, inputs):
        found.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch.compile(layer, backend=remember, fullgraph=True)(torch.randn(30, 64))
    assert not any("linear_pointwise" in name for name in found)


def test_layers_of_other_kinds_stay_and_ours_can_be_pickled():
    class Special(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(4, 4), Special(4, 4))
    names = list(model.state_dict())
    use_onednn(model)
    assert [type(module) for module in model] == [OneDNNLinear, Special]
    assert list(model.state_dict()) == names
    again = pickle.loads(pickle.dumps(model[0]))
    torch.testing.assert_close(again(torch.ones(2, 4)), model[0](torch.ones(2, 4)))


def test_layers_change_once_their_weights_are_loaded(tiny_model, tmp_path):
    """transformers makes models on the meta device, and there its quantizers exchange layers that are `nn.Linear`."""

    def kinds(model):
        return {type(module) for module in model.modules() if isinstance(module, nn.Linear)}

    model = tiny_model("llama")
    assert kinds(model) == {OneDNNLinear}
    with torch.device("meta"):
        assert kinds(type(model)(model.config)) == {nn.Linear}
    model.save_pretrained(tmp_path)
    assert kinds(type(model).from_pretrained(tmp_path)) == {OneDNNLinear}
    assert kinds(type(model).from_pretrained(tmp_path, dtype="bfloat16")) == {nn.Linear}


def test_nothing_changes_where_mkl_is_as_fast(monkeypatch):
    monkeypatch.setattr(onednn_linear, "mkl_is_slow", lambda: False)
    layer = nn.Linear(4, 4)
    use_onednn(layer)
    assert type(layer) is nn.Linear
    assert _counted(lambda: linear(torch.ones(2, 4), layer.weight)) == (0, 1)


@pytest.mark.parametrize(
    ("vendor", "capability", "mkl", "slow"),
    [
        ("AuthenticAMD", "AVX512", True, True),
        ("AuthenticAMD", "AVX2", True, False),
        ("GenuineIntel", "AVX512", True, False),
        ("AuthenticAMD", "AVX512", False, False),
    ],
)
def test_mkl_is_slow_on_cpus_of_amd_with_avx512(vendor, capability, mkl, slow, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("pathlib.Path.exists", lambda path: True)
    monkeypatch.setattr("pathlib.Path.read_text", lambda path: f"processor : 0\nvendor_id : {vendor}\n")
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    monkeypatch.setattr("torch.backends.mkl.is_available", lambda: mkl)
    assert onednn_linear.mkl_is_slow.__wrapped__() is slow
