import itertools
import math

import pytest
import torch
from torch import nn

from cifar_deploy import architectures
from cifar_deploy.recipe import Optimizer, Schedule
from cifar_deploy.train.optim import Average, make_optimizer, rate, sizes

NAMES = ("triangular", "onecycle", "cosine")
START = {"triangular": 0.0, "cosine": 0.0, "onecycle": 1 / 25}  # one step before the first
END = {"triangular": 0.0, "cosine": 0.0, "onecycle": 1e-4}


def factors(name: str, warmup: float, steps: int) -> list[float]:
    return [rate(Schedule(name, warmup), step, steps) for step in range(steps)]


# --- schedules ----------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0.01, 0.2, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("name", NAMES)
def test_the_rate_rises_to_its_peak_and_falls(name: str, warmup: float) -> None:
    steps = 1000
    found = factors(name, warmup, steps)
    top = round(warmup * steps) - 1
    assert found[top] == pytest.approx(1.0)
    assert max(found) <= 1.0
    assert all(a < b for a, b in itertools.pairwise(found[: top + 1]))
    assert all(a > b for a, b in itertools.pairwise(found[top:]))
    assert found[0] == pytest.approx(START[name], abs=1.1 / (warmup * steps))
    assert found[-1] == pytest.approx(END[name], abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_without_warm_up_the_rate_starts_at_its_peak(name: str) -> None:
    found = factors(name, 0.0, 100)
    assert found[0] == 1.0
    assert all(a > b for a, b in itertools.pairwise(found))
    assert found[-1] == pytest.approx(END[name], abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 97])
@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.3, 0.77, 0.9])
@pytest.mark.parametrize("name", NAMES)
def test_runs_of_any_length_stay_within_the_peak(name: str, warmup: float, steps: int) -> None:
    found = factors(name, warmup, steps)
    assert all(0 <= factor <= 1 for factor in found)
    if steps == 1:
        assert found == [1.0]
        return
    assert found[0] > 0
    assert found[-1] == pytest.approx(END[name], abs=1e-12)


def test_triangular_by_hand() -> None:
    assert factors("triangular", 0.4, 10) == pytest.approx(
        [1 / 4, 2 / 4, 3 / 4, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]
    )


def test_cosine_by_hand() -> None:
    found = factors("cosine", 0.25, 8)
    assert found[:2] == pytest.approx([0.5, 1.0])
    assert found[1:] == pytest.approx([(1 + math.cos(math.pi * i / 6)) / 2 for i in range(7)])


@pytest.mark.parametrize("warmup", [0.1, 0.25, 0.5])
def test_onecycle_is_torchs(warmup: float) -> None:
    steps = 1000
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, steps, pct_start=warmup, div_factor=25, final_div_factor=1e4 / 25
    )
    wanted = []
    for _ in range(steps):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(wanted) < steps:
            theirs.step()
    found = factors("onecycle", warmup, steps)
    peak = round(warmup * steps) - 1
    # Torch begins a step lower; from the peak on the two are the same.
    assert found[peak:] == pytest.approx(wanted[peak:], abs=1e-9)
    assert found[:peak] == pytest.approx(wanted[:peak], abs=1e-2)
    assert found[: peak - 1] == pytest.approx(wanted[1:peak], abs=1e-2)


# --- the images' size -----------------------------------------------------------------------------


def test_images_grow_by_eights_until_they_are_whole() -> None:
    assert sizes(Schedule(first_size=16, grown=0.6), 100, 32) == {0: 16, 30: 24, 60: 32}
    assert sizes(Schedule(first_size=20, grown=1.0), 100, 32) == {0: 20, 50: 28, 100: 32}


@pytest.mark.parametrize(
    "schedule",
    [Schedule(), Schedule(first_size=32), Schedule(first_size=16, grown=0.0)],
    ids=["by default", "whole at first", "grown at once"],
)
def test_images_may_be_whole_throughout(schedule: Schedule) -> None:
    assert sizes(schedule, 100, 32) == {0: 32}


# --- optimisers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_leaves_norms_and_biases_alone(name: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.5)
        parameter.grad = torch.zeros_like(parameter)  # what moves now is weight decay's doing
    make_optimizer(network, Optimizer(name, lr=0.1, momentum=0.0, weight_decay=0.2)).step()
    for key, parameter in network.named_parameters():
        decays = key in ("0.weight", "3.weight")
        wanted = 0.5 * (1 - 0.1 * 0.2) if decays else 0.5
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, wanted))


@pytest.mark.parametrize("network", ["custom_resnet", "mobilenet_v3_small", "vgg19"])
def test_every_parameter_is_optimised_once(network: str) -> None:
    with torch.device("meta"):
        built = architectures.build(network)
    groups = make_optimizer(built, Optimizer()).param_groups
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in built.parameters())
    plain = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert {id(module.weight), id(module.bias)} <= plain
        elif isinstance(module, nn.Conv2d | nn.Linear):
            assert id(module.weight) not in plain
            assert module.bias is None or id(module.bias) in plain


def test_sgd_is_nesterovs() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 1.0)
    optimizer = make_optimizer(network, Optimizer("sgd", lr=0.1, momentum=0.9, weight_decay=0.0))
    weight, velocity = 1.0, 0.0
    for gradient in (1.0, -2.0, 3.0):
        network.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        velocity = 0.9 * velocity + gradient
        weight -= 0.1 * (gradient + 0.9 * velocity)
        assert network.weight.item() == pytest.approx(weight, rel=1e-6)


def test_sgd_without_momentum_is_plain() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 1.0)
    optimizer = make_optimizer(network, Optimizer("sgd", lr=0.1, momentum=0.0, weight_decay=0.0))
    for wanted in (0.8, 0.6):
        network.weight.grad = torch.tensor([[2.0]])
        optimizer.step()
        assert network.weight.item() == pytest.approx(wanted)


def test_adamw_takes_the_momentum_as_its_first_beta() -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), Optimizer("adamw", lr=0.1, momentum=0.8))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.999)


# --- the average --------------------------------------------------------------------------------


def test_the_average_is_an_exponential_one() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    average = Average(network, 0.9)
    by_hand = {k: v.clone().double() for k, v in network.state_dict().items()}
    for _ in range(5):
        for parameter in network.parameters():
            nn.init.normal_(parameter)
        network(torch.randn(2, 3, 8, 8))  # moves the running statistics
        average.update()
        for key, value in network.state_dict().items():
            by_hand[key] = 0.9 * by_hand[key] + 0.1 * value.double()
    found = average.network.state_dict()
    floats = {key for key, value in found.items() if value.is_floating_point()}
    assert floats >= {"0.weight", "0.bias", "1.weight", "1.running_mean", "1.running_var"}
    for key in floats:
        torch.testing.assert_close(found[key].double(), by_hand[key], rtol=1e-5, atol=1e-6)


def test_the_average_of_a_short_run_forgets_its_beginning() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 0.0)
    short, long = Average(network, 0.99), Average(network, 0.99)
    nn.init.constant_(network.weight, 1.0)
    left = 1.0
    for done in range(1, 31):
        short.update(done)
        left *= (1 + done) / (10 + done)
        assert short.network.get_parameter("weight").item() == pytest.approx(1 - left)
    assert left < 1e-6
    long.update(100_000)  # far in a run the decay is what was asked for
    assert long.network.get_parameter("weight").item() == pytest.approx(0.01)


def test_the_average_stands_apart() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    average = Average(network, 0.5)
    before = average.network.state_dict()["0.weight"].clone()
    nn.init.constant_(network.get_parameter("0.weight"), 7.0)
    assert torch.equal(average.network.state_dict()["0.weight"], before)
    assert network.training
    assert not average.network.training
    assert not any(p.requires_grad for p in average.network.parameters())
    assert all(p.requires_grad for p in network.parameters())
