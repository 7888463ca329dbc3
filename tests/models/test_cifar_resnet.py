import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reuse_algos.models import CifarResNet, build_model
from reuse_algos.models.cifar_resnet import BasicBlock

DEPTHS = {"resnet8": 1, "resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def closed_form(n, classes=10, channels=3, width=16):
    """Weights of 3x3 convolutions, two numbers per batch norm channel, and the linear layer."""
    total = 9 * channels * width + 2 * width
    previous = width
    for size in (width, 2 * width, 4 * width):
        total += 9 * previous * size + (2 * n - 1) * 9 * size * size + 2 * n * 2 * size
        previous = size
    return total + previous * classes + classes


@pytest.mark.parametrize(
    ("name", "millions", "exact"),
    # He et al., table 6, and the counts that go with option A shortcuts.
    [
        ("resnet20", 0.27, 269_722),
        ("resnet32", 0.46, 464_154),
        ("resnet44", 0.66, 658_586),
        ("resnet56", 0.85, 853_018),
        ("resnet110", 1.7, 1_727_962),
    ],
)
def test_parameters_are_those_of_the_paper(name, millions, exact):
    parameters = count(build_model(name, 10, (3, 32, 32)))
    assert parameters == exact == closed_form(DEPTHS[name])
    assert round(parameters / 1e6, 1 if millions > 1 else 2) == millions


@pytest.mark.parametrize(("n", "classes", "channels", "width"), [(1, 20, 3, 16), (1, 10, 1, 8), (3, 100, 3, 32)])
def test_parameters_of_other_sizes(n, classes, channels, width):
    model = CifarResNet(n, classes, channels, width)
    assert count(model) == closed_form(n, classes, channels, width)
    # 6 n + 2 layers with weights
    assert sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules()) == 6 * n + 2


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [8, 7])
def test_option_a_shortcut_against_loops(stride, size):
    block = BasicBlock(3, 6, stride)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    out = -(-size // stride)
    expected = torch.zeros(2, 6, out, out)
    for channel in range(3):
        for row in range(out):
            for column in range(out):
                expected[:, channel, row, column] = x[:, channel, row * stride, column * stride]
    assert torch.equal(block.shortcut(x), expected)
    assert block(x).shape == expected.shape


def test_a_block_is_the_formula_of_the_paper():
    block = BasicBlock(4, 4).eval()
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    weights = block.conv1.weight, block.conv2.weight
    scale = (1 + block.bn1.eps) ** -0.5  # a fresh batch norm in evaluation
    inner = F.relu(F.conv2d(x, weights[0], padding=1) * scale)
    expected = F.relu(F.conv2d(inner, weights[1], padding=1) * scale + x)
    torch.testing.assert_close(block(x), expected)


def test_sizes_inside_and_logits():
    model = CifarResNet(1, 7)
    seen = {}
    for name in ("layer1", "layer2", "layer3"):
        getattr(model, name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: tuple(out.shape)}))
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert seen == {"layer1": (2, 16, 32, 32), "layer2": (2, 32, 16, 16), "layer3": (2, 64, 8, 8)}
    assert model(torch.zeros(2, 3, 13, 9)).shape == (2, 7)


def test_convolutions_start_from_kaimings_fan_out_distribution():
    torch.manual_seed(0)
    for module in CifarResNet(3, 10, width=32).modules():
        if isinstance(module, nn.Conv2d):
            expected = (2 / (9 * module.out_channels)) ** 0.5
            standard_error = expected / (2 * module.weight.numel()) ** 0.5
            assert abs(module.weight.std() - expected) < 5 * standard_error
            assert abs(module.weight.mean()) < 5 * expected / module.weight.numel() ** 0.5
            assert module.bias is None
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
            assert bool((module.bias == 0).all())
