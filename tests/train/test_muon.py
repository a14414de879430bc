import pytest
import torch
from torch import nn

from cifar_deploy import architectures
from cifar_deploy.device import has_bf16
from cifar_deploy.recipe import Optimizer
from cifar_deploy.train.muon import Muon, orthogonal
from cifar_deploy.train.optim import Lookahead, make_optimizer


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 64, 27), (2, 20, 300), (1, 1, 9)])
def test_the_singular_values_come_near_to_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    # The directions stay: it is the nearest orthogonal matrix that is come near to.
    u, s, vt = torch.linalg.svd(matrices, full_matrices=False)
    spread = (s > 0.2 * s[..., :1]).all(-1)
    found = orthogonal(matrices, 5)
    assert found.shape == matrices.shape
    along = torch.diagonal(u.mT @ found @ vt.mT, dim1=1, dim2=2)
    assert along.min() > 0
    values = torch.linalg.svdvals(found)
    torch.testing.assert_close(values.sort().values, along.sort().values, rtol=1e-3, atol=1e-3)
    assert ((values > 0.5) & (values < 1.3))[spread].all()


def test_bf16_is_good_enough() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(2, 64, 27)
    found = orthogonal(matrices, 5, torch.bfloat16)
    assert found.dtype == torch.float32
    values = torch.linalg.svdvals(found)
    assert ((values > 0.5) & (values < 1.3)).all()
    exact = orthogonal(matrices, 5)
    assert (found - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("shape", [(2, 24, 24), (2, 24, 47), (2, 24, 48), (2, 200, 24)])
def test_wide_matrices_by_their_squares_are_those_of_the_iteration(
    shape: tuple[int, int, int],
) -> None:
    """As gradients are: a few directions far above all others."""
    torch.manual_seed(0)
    low = torch.randn(*shape[:2], 2) @ torch.randn(shape[0], 2, shape[2])
    matrices = 30 * low + 0.1 * torch.randn(shape)
    expected = matrices.double() / torch.linalg.matrix_norm(matrices.double(), keepdim=True)
    for _ in range(3):
        square = expected @ expected.mT
        expected = (
            3.4445 * expected - 4.775 * square @ expected + 2.0315 * square @ square @ expected
        )
    found = orthogonal(matrices, 3)
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_a_batch_is_as_one_after_the_other() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(4, 8, 30)
    one_by_one = torch.cat([orthogonal(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(orthogonal(matrices), one_by_one)


def test_a_step_by_hand() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, bias=False))
    options = Optimizer("muon", lr=0.1, momentum=0.5, weight_decay=0.2, muon_lr=0.3)
    optimizer = make_optimizer(network, options)
    filters = network.get_parameter("1.weight")
    weight, buffer = filters.detach().clone(), torch.zeros_like(filters)
    first = network.get_parameter("0.weight").detach().clone()
    dtype = torch.bfloat16 if has_bf16(weight.device) else torch.float32
    for _ in range(3):
        gradient = torch.randn_like(filters)
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        filters.grad = gradient.clone()
        optimizer.step()
        buffer = 0.6 * buffer + gradient
        ahead = gradient + 0.6 * buffer
        update = orthogonal(ahead.reshape(1, 6, -1), dtype=dtype).view_as(weight)
        weight = weight * (6**0.5 / weight.norm()) - 0.3 * update
        torch.testing.assert_close(filters.detach(), weight, rtol=1e-4, atol=1e-5)
    # What meets the pixels is SGD's: here weight decay alone moves it.
    moved = network.get_parameter("0.weight").detach()
    assert 0 < (moved / first).mean() < 1
    torch.testing.assert_close(moved / first, torch.full_like(first, float((moved / first).mean())))


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_filters_of_a_shape_move_together_as_each_alone(memory: torch.memory_format) -> None:
    """Among them 1x1 ones, whose matrices are one another's transposed."""
    torch.manual_seed(0)
    kinds = [(3, 4, 3), (4, 8, 3), (8, 24, 1), (24, 8, 1), (8, 24, 1), (24, 24, 1), (24, 24, 3)]
    network = nn.Sequential(*(nn.Conv2d(*kind, bias=False) for kind in kinds))
    network.to(memory_format=memory)
    filters = [network[i].weight for i in range(1, len(kinds))]
    before = [f.detach().clone() for f in filters]
    optimizer = make_optimizer(network, Optimizer("muon", muon_lr=0.3, muon_momentum=0.0))
    # As they come from elsewhere: their numbers lie in another order than the filters' own.
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape)
    gradients = [f.grad.clone() for f in filters]
    optimizer.step()
    for after, weight, gradient in zip(filters, before, gradients, strict=True):
        exact = orthogonal(gradient.flatten(1)[None]).view(weight.shape)
        expected = weight * (len(weight) ** 0.5 / weight.norm()) - 0.3 * exact
        near = 3e-2 if has_bf16(weight.device) else 1e-5
        assert (after - expected).norm() < near * (0.3 * exact).norm()


def test_what_was_trained_before_keeps_its_scale() -> None:
    # Behind a frozen norm, or none, it would compute something else with another.
    torch.manual_seed(0)
    both = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, bias=False)) for _ in range(2)]
    both[1].load_state_dict(both[0].state_dict())
    scale = 0.37 * 6**0.5 / both[0][1].weight.norm().item()
    both[0][1].weight.data *= scale
    options = Optimizer("muon", muon_lr=0.1)
    kept, usual = (
        make_optimizer(both[0], options, {"1.weight": 1.0}),
        make_optimizer(both[1], options),
    )
    for rate in (0.0, 0.3, 0.2):
        before = both[0][1].weight.detach().clone()
        gradient = torch.randn(6, 4, 3, 3)
        for network, optimizer in zip(both, (kept, usual), strict=True):
            network[1].weight.grad = gradient.clone()
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
        assert torch.allclose(both[0][1].weight, before) == (rate == 0)
        # The same way, at 0.37 times the size.
        torch.testing.assert_close(both[0][1].weight, 0.37 * both[1][1].weight)


def test_filters_in_groups_are_not_muons() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 1))
    groups = make_optimizer(network, Optimizer("muon")).param_groups
    assert [p.shape for g in groups if g.get("muon") for p in g["params"]] == [(8, 8, 1, 1)]


def test_whose_filters_are_muons() -> None:
    with torch.device("meta"):
        network = architectures.build("mobilenet_v3_small")
    optimizer = make_optimizer(network, Optimizer("muon"))
    assert isinstance(optimizer, Muon)
    mine = {id(p) for g in optimizer.param_groups if g.get("muon") for p in g["params"]}
    everyone = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(everyone) == sorted(id(p) for p in network.parameters())
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            depthwise = module.groups > 1
            assert (id(module.weight) in mine) == (not depthwise and name != "features.0.0")
        elif isinstance(module, nn.Linear):
            assert id(module.weight) not in mine


def test_the_norms_biases_have_their_own_rate() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    options = Optimizer("sgd", lr=0.1, norm_bias_factor=8.0)
    groups = make_optimizer(network, options).param_groups
    peaks = {id(p): group["peak"] for group in groups for p in group["params"]}
    found = {name: peaks[id(p)] for name, p in network.named_parameters()}
    assert found == pytest.approx({"0.weight": 0.1, "0.bias": 0.1, "1.weight": 0.1, "1.bias": 0.8})


def test_lookahead_by_hand() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 0.0)
    ahead = Lookahead(network, 2)
    slow = 0.0
    for done in range(1, 8):
        nn.init.constant_(network.weight, float(done))
        ahead.update(done, 7)
        fast = float(done)
        if done % 2 == 0 or done == 7:  # the last steps count too
            decay = 0.95**2 * (done / 7) ** 3
            slow = fast = decay * slow + (1 - decay) * fast
        assert network.weight.item() == pytest.approx(fast, rel=1e-6)
        assert ahead.network.get_parameter("weight").item() == pytest.approx(slow, rel=1e-6)
