"""Update rules beside plain formulas and torch's own, and the learning rate over time."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests import toy
from tests.configs import M, problems
from worker import optimizer
from worker.flow import trace
from worker.schedule.job import delay
from worker.spec.cluster import ClusterSpec, OptimizerSpec, PipelineSpec
from worker.spec.job import Plan

RULES = ["adamw", "adam", "nadam", "lamb", "muon", "sgd"]
COURSES = ["constant", "step", "linear", "polynomial", "cosine", "exponential", "inverse_sqrt"]
OUTER = ("table",)


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"table": (9, 4), "first": (6, 4), "bias": (6,), "second": (3, 6), "zeros": (3, 3)}
    values = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: nn.Parameter(value * (name != "zeros")) for name, value in values.items()}


def gradients(updates: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        {name: torch.randn(p.shape, generator=generator) for name, p in parameters().items()} for _ in range(updates)
    ]


def update(rule: torch.optim.Optimizer | None, chosen: dict[str, nn.Parameter], grads: dict[str, Tensor]) -> None:
    assert rule is not None
    for name, parameter in chosen.items():
        parameter.grad = grads[name].clone()
    rule.step()
    rule.zero_grad()


def trained(spec: OptimizerSpec, chosen: dict[str, nn.Parameter], updates: int = 3) -> dict[str, Tensor]:
    rule = optimizer.build(spec, chosen, OUTER)
    for grads in gradients(updates):
        update(rule, chosen, grads)
    return {name: parameter.detach() for name, parameter in chosen.items()}


@pytest.mark.parametrize("name", RULES)
def test_a_parameter_does_not_depend_on_its_neighbours(name: str) -> None:
    spec = OptimizerSpec(name=name, lr=0.1)
    together = trained(spec, parameters())
    alone = {name: trained(spec, {name: parameter})[name] for name, parameter in parameters().items()}
    assert all(torch.equal(together[name], alone[name]) for name in together)
    assert not any(torch.equal(together[name], start) for name, start in parameters().items())


@pytest.mark.parametrize("name", RULES)
def test_a_saved_optimizer_goes_on_as_if_nothing_had_been(name: str) -> None:
    spec = OptimizerSpec(name=name, lr=0.1)
    kept = parameters()
    rule = optimizer.build(spec, kept, OUTER)
    first, second, third = gradients(3)
    update(rule, kept, first)
    update(rule, kept, second)
    loaded = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in kept.items()}
    fresh = optimizer.build(spec, loaded, OUTER)
    assert rule is not None and fresh is not None
    fresh.load_state_dict(copy.deepcopy(rule.state_dict()))
    for each, weights in ((rule, kept), (fresh, loaded)):
        optimizer.set_learning_rate(each, 0.05)
        update(each, weights, third)
    assert all(torch.equal(kept[name], loaded[name]) for name in kept)


@pytest.mark.parametrize("name", RULES)
def test_a_parameter_without_a_gradient_stays(name: str) -> None:
    chosen = parameters()
    rule = optimizer.build(OptimizerSpec(name=name, lr=0.1), chosen, OUTER)
    assert rule is not None
    chosen["first"].grad = torch.ones_like(chosen["first"])
    rule.step()
    assert [name for name, start in parameters().items() if not torch.equal(chosen[name], start)] == ["first"]


@pytest.mark.parametrize(("name", "torchs"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_adam_is_torchs_bit_for_bit(name: str, torchs: type[torch.optim.Adam]) -> None:
    spec = OptimizerSpec(name=name, lr=0.1, weight_decay=0.1)
    ours, theirs = parameters(), parameters()
    rule = optimizer.build(spec, ours)
    assert rule is not None
    decays = [{"params": [p], "weight_decay": 0.1 if p.dim() > 1 else 0.0} for p in theirs.values()]
    plain = torchs(decays, lr=0.1, betas=spec.betas, eps=spec.eps, fused=True)
    for number, grads in enumerate(gradients(4)):
        for each, chosen in ((rule, ours), (plain, theirs)):
            optimizer.set_learning_rate(each, 0.1 / (number + 1))
            update(each, chosen, grads)
    for name in ours:
        mine, other = rule.state[ours[name]], plain.state[theirs[name]]
        assert torch.equal(ours[name], theirs[name]) and all(torch.equal(mine[key], other[key]) for key in other)


def test_a_stage_without_parameters_has_no_optimizer() -> None:
    assert {optimizer.build(OptimizerSpec(name=name), {}) for name in RULES} == {None}


def plain_lamb(spec: OptimizerSpec, start: Tensor, grads: list[Tensor]) -> Tensor:
    """Algorithm 2 of You et al. 2020 in float64; vectors without weight decay and trust ratio."""
    beta1, beta2 = spec.betas
    x, m, v = start.double(), torch.zeros_like(start).double(), torch.zeros_like(start).double()
    for t, g in enumerate((grad.double() for grad in grads), 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        r = (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + spec.eps)
        ratio = 1.0
        if x.dim() > 1:
            r = r + spec.weight_decay * x
            ratio = float(x.norm() / r.norm()) or 1.0
        x = x - spec.lr * ratio * r
    return x


def test_lamb_is_the_published_formula() -> None:
    spec = OptimizerSpec(name="lamb", lr=0.1, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    results = trained(spec, parameters(), 5)
    for name, start in parameters().items():
        expected = plain_lamb(spec, start.detach(), [grads[name] for grads in gradients(5)])
        torch.testing.assert_close(results[name].double(), expected, rtol=1e-5, atol=1e-6)


def test_muon_takes_hidden_matrices_and_adamw_the_rest() -> None:
    results = trained(OptimizerSpec(name="muon", lr=0.1, weight_decay=0.2), parameters())
    expected = parameters()
    hidden = [expected[name] for name in ("first", "second", "zeros")]
    muon = torch.optim.Muon(hidden, lr=0.1, weight_decay=0.2, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    table = torch.optim.AdamW([expected["table"]], lr=0.1, weight_decay=0.2, fused=True)
    bias = torch.optim.AdamW([expected["bias"]], lr=0.1, weight_decay=0.0, fused=True)
    for grads in gradients(3):
        for name, parameter in expected.items():
            parameter.grad = grads[name].clone()
        for rule in (muon, table, bias):
            rule.step()
    assert all(torch.equal(results[name], expected[name]) for name in results)


def test_embeddings_and_the_last_layer_are_not_hidden() -> None:
    flow = trace(toy.model(blocks=1), toy.Data().signature)
    assert optimizer.outer(flow) == {"embed.word.weight", "head.decoder.weight", "head.decoder.bias"}


def rates(updates: int = 6, warmup: int = 2, **keys: object) -> list[float]:
    spec = OptimizerSpec(lr=8.0, warmup_steps=warmup, **keys)
    return [round(optimizer.learning_rate(spec, update, updates), 3) for update in range(updates)]


@pytest.mark.parametrize(
    "keys, expected",
    [
        ({"schedule": "constant"}, [4, 8, 8, 8, 8, 8]),
        ({"schedule": "linear"}, [4, 8, 8, 6, 4, 2]),
        ({"schedule": "polynomial"}, [4, 8, 8, 4.5, 2, 0.5]),
        ({"schedule": "polynomial", "power": 0.5}, [4, 8, 8, 6.928, 5.657, 4]),
        ({"schedule": "cosine"}, [4, 8, 8, 6.828, 4, 1.172]),
        ({"schedule": "step", "decay_every": 2}, [4, 8, 8, 8, 0.8, 0.8]),
        ({"schedule": "step", "decay_every": 1, "decay": 0.5}, [4, 8, 8, 4, 2, 1]),
        ({"schedule": "exponential"}, [4, 8, 8, 4.499, 2.53, 1.423]),
        ({"schedule": "exponential", "decay_every": 1, "decay": 0.5}, [4, 8, 8, 4, 2, 1]),
        ({"schedule": "inverse_sqrt"}, [4, 8, 8, 6.532, 5.657, 5.06]),
    ],
)
def test_courses_of_the_rate(keys: dict[str, object], expected: list[float]) -> None:
    assert rates(**keys) == expected


@given(
    schedule=st.sampled_from(COURSES),
    power=st.floats(0.01, 9),
    warmup=st.integers(0, 20),
    updates=st.integers(1, 20),
    update=st.integers(0, 60),
)
def test_no_rate_is_negative_complex_or_above_the_highest(
    schedule: str, power: float, warmup: int, updates: int, update: int
) -> None:
    """Also behind the end of the run, where vPipe's polynomial became complex."""
    own = {"polynomial": {"power": power}, "step": {"decay_every": 3}}.get(schedule, {})
    spec = OptimizerSpec(lr=0.5, schedule=schedule, warmup_steps=warmup, **own)
    rate = optimizer.learning_rate(spec, update, updates)
    assert isinstance(rate, float) and 0.0 <= rate <= 0.5


def test_replicas_scale_the_rate_only_where_told() -> None:
    scaled, plain = OptimizerSpec(lr=3.0, scale_lr_by_replicas=True), OptimizerSpec(lr=3.0)
    assert optimizer.learning_rate(scaled, 0, 9, replica_ratio=1 / 3) == 1.0
    assert optimizer.learning_rate(plain, 0, 9, replica_ratio=1 / 3) == 3.0


def test_pipemare_divides_by_the_delay_and_lets_go() -> None:
    spec = OptimizerSpec(lr=9.0, pipemare=4)
    by_delay = {d: [optimizer.learning_rate(spec, k, 9, delay=d) for k in (0, 2, 4, 8)] for d in (0, 1, 9)}
    assert by_delay == {0: [9.0] * 4, 1: [9.0] * 4, 9: [1.0, 3.0, 9.0, 9.0]}


PIPELINES = {
    "1f1b": ({}, [3, 2, 1, 0]),
    "more in flight": ({"in_flight": 7}, [6, 4, 2, 0]),
    "2bw": ({"schedule": "2bw", "minibatches_per_step": 4}, [1, 1, 1, 1]),
    "accumulate": ({"schedule": "accumulate", "minibatches_per_step": 2}, [2, 1, 1, 0]),
    "none": ({"schedule": "none"}, [0, 0, 0, 0]),
    "replicas": ({"replicas": [2, 1, 1, 2]}, [2, 3, 2, 0]),
}


@pytest.mark.parametrize("keys, expected", PIPELINES.values(), ids=PIPELINES)
def test_the_delay_of_a_stage_follows_from_the_schedule(keys: dict[str, object], expected: list[int]) -> None:
    spec = ClusterSpec(machines=["cpu"], pipeline=PipelineSpec(**keys))
    replicas = keys.get("replicas", [1] * 4)
    plan = Plan(partition=[1] * 4, recompute_ratio=[0.0] * 4, reason="a test", replicas=replicas)
    assert [delay(spec, plan, stage) for stage in range(4)] == expected


ADAPTIVE = "adamw or adam or nadam or lamb or muon"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("{momentum: 0.9}", ":2:23: optimizer.momentum: belongs to name muon or sgd, but name is adamw"),
        ("{name: sgd, eps: 1e-6}", f":2:29: optimizer.eps: belongs to name {ADAPTIVE}, but name is sgd"),
        (
            "{name: sgd, nesterov: true}",
            ":2:34: optimizer.nesterov: needs a `momentum` above 0 to look along",
        ),
        ("{power: 1}", ":2:20: optimizer.power: belongs to schedule polynomial, but schedule is constant"),
        (
            "{schedule: cosine, decay: 0.5}",
            ":2:38: optimizer.decay: belongs to schedule step or exponential, but schedule is cosine",
        ),
        (
            "{schedule: step}",
            ":2:23: optimizer.schedule: is step, which needs `decay_every`: updates between two falls",
        ),
        (
            "{pipemare: 5}\npipeline: {sync_mode: bsp}",
            ":2:23: optimizer.pipemare: belongs to sync_mode asp; under bsp all stages update at once, over the same "
            "minibatches",
        ),
    ],
)
def test_keys_that_do_not_fit(text: str, expected: str) -> None:
    assert problems(f"{M}optimizer: {text}") == [expected]


def test_a_job_travels_with_the_keys_of_other_rules_at_their_defaults() -> None:
    spec = OptimizerSpec(name="sgd", momentum=0.9, nesterov=True, schedule="step", decay_every=5)
    assert OptimizerSpec.model_validate_json(spec.model_dump_json()) == spec
