"""The samplers, against closed forms. Time t: 0 is noise, 1 is data."""

import pytest
import torch

from models.options import FlowOptions
from models.priors.samplers import SAMPLERS, guide, is_guided, make_calls, take_step, time_grid


def gaussian_velocity(mean: float, std: float):
    """The exact velocity where the data is normal: E[data − noise | x_t]."""

    def velocity(x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        t = t.view(-1, 1)
        variance = t**2 * std**2 + (1 - t) ** 2
        return mean + (t * std**2 - (1 - t)) / variance * (x - t * mean)

    return velocity


def solve(
    sampler: str, num_steps: int, mean: float = 2.0, std: float = 0.5, time_easing: float = 0.0
) -> float:
    """Return the largest error against the exact flow, noise → mean + std·noise."""
    noise = torch.linspace(-2, 2, 9, dtype=torch.float32)[:, None]
    velocity = gaussian_velocity(mean, std)
    x, m = noise, torch.zeros_like(noise)
    for call in make_calls(FlowOptions(sampler=sampler, num_steps=num_steps, time_easing=time_easing)):
        v = velocity(x, torch.full((9,), call.t), None)
        x, m = take_step(x, v, m, torch.tensor([call.coefficients]).expand(9, 6))
    return float((x - (mean + std * noise)).abs().max())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_error_falls_with_the_order_of_the_method(sampler) -> None:
    coarse, fine = solve(sampler, 16), solve(sampler, 64)
    # Four times the steps make errors 4^order smaller. DPM-Solver++(2M) takes two steps of first order
    # at the start and one at the end, where the log of the signal-to-noise ratio is infinite.
    order = {"euler": 0.95, "heun": 1.5, "dpmpp_2m": 1.1}[sampler]
    assert fine < coarse / 4**order, (coarse, fine)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_times_within_noise_and_data_are_crossed_with_the_order_of_the_method(sampler) -> None:
    velocity = gaussian_velocity(mean := 2.0, std := 0.5)
    noise = torch.linspace(-2, 2, 9)[:, None]
    start, end = (t * mean + ((t * std) ** 2 + (1 - t) ** 2) ** 0.5 * noise for t in (0.25, 0.75))

    def error(num_steps: int) -> float:
        x, m = start, torch.zeros_like(start)
        for call in SAMPLERS[sampler]([0.25 + 0.5 * i / num_steps for i in range(num_steps + 1)]):
            v = velocity(x, torch.full((9,), call.t), None)
            x, m = take_step(x, v, m, torch.tensor([call.coefficients]).expand(9, 6))
        return float((x - end).abs().max())

    order = {"euler": 0.95, "heun": 1.8, "dpmpp_2m": 1.8}[sampler]
    assert error(16) < error(4) / 4**order


def test_second_order_methods_are_better_than_euler_for_as_many_calls() -> None:
    assert solve("dpmpp_2m", 16) < solve("euler", 16) / 5
    assert solve("heun", 8) < solve("euler", 15) / 3


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_single_point_is_reached_in_one_step(sampler) -> None:
    """Where the data is one point the path is straight, so any number of steps is exact."""
    for num_steps in (1, 2, 7):
        assert solve(sampler, num_steps, std=0.0) < 1e-5


def test_time_runs_from_noise_to_data_with_shorter_steps_at_both_ends() -> None:
    assert time_grid(4) == [0, 0.25, 0.5, 0.75, 1]
    for time_easing in (0.35, 0.5, 1.0):
        times = torch.tensor(time_grid(7, time_easing), dtype=torch.float64)
        steps = times.diff()
        assert times[0] == 0
        assert times[-1] == 1
        assert torch.allclose(steps, steps.flip(0))
        assert (steps[:4].diff() > 0).all()


def test_easing_makes_the_same_number_of_steps_better() -> None:
    """Data much narrower than noise, as within a class, is where equal steps end too coarse."""
    assert solve("dpmpp_2m", 12, std=0.1, time_easing=0.5) < solve("dpmpp_2m", 12, std=0.1) / 1.5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_calls_are_counted(sampler) -> None:
    assert len(make_calls(FlowOptions(sampler=sampler, num_steps=10))) == (19 if sampler == "heun" else 10)
    assert make_calls(FlowOptions(sampler=sampler, num_steps=1))[0].t == 0


def test_samples_of_different_schedules_step_together_as_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    velocity = gaussian_velocity(1.0, 0.3)
    schedules = [
        make_calls(FlowOptions(sampler=sampler, num_steps=num_steps))
        for sampler, num_steps in (("euler", 5), ("heun", 3), ("dpmpp_2m", 5))
    ]
    assert len({len(calls) for calls in schedules}) == 1
    noise = torch.randn(3, 1, generator=generator)
    alone = []
    for start, calls in zip(noise, schedules, strict=True):
        x, m = start[None], torch.zeros(1, 1)
        for call in calls:
            v = velocity(x, torch.tensor([call.t]), None)
            x, m = take_step(x, v, m, torch.tensor([call.coefficients]))
        alone.append(x)
    x, m = noise, torch.zeros(3, 1)
    for calls in zip(*schedules, strict=True):
        v = velocity(x, torch.tensor([call.t for call in calls]), None)
        x, m = take_step(x, v, m, torch.tensor([call.coefficients for call in calls]))
    assert torch.equal(x, torch.cat(alone))


def test_guidance_interpolates_and_extrapolates() -> None:
    conditional, unconditional = torch.ones(4, 1), torch.zeros(4, 1)
    guided = guide(conditional, unconditional, torch.tensor([0.0, 1.0, 2.5, 0.5]))
    assert guided.flatten().tolist() == [0.0, 1.0, 2.5, 0.5]


def test_guidance_stays_in_its_interval() -> None:
    assert is_guided(0.5, 2.0, (0.25, 0.75))
    assert not is_guided(0.1, 2.0, (0.25, 0.75))
    assert not is_guided(0.5, 1.0, (0.0, 1.0))
