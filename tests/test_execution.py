"""The table executor computes what the readable steps compute, from the same noise and with the same calls, and says when it does not run;
its loop neither waits for the device nor grows; compiled and autocast runs agree with plain ones to their precision."""
import concurrent.futures
import dataclasses
import itertools
import json
import math
import pathlib
import re
import tempfile

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import sdediff
from sdediff import (
    EDMSDE,
    VPSDE,
    Prediction,
    RectifiedFlow,
    ReverseSDE,
    encode,
    execution,
    from_network,
    from_score,
    method,
    methods,
    programs,
    random,
    sample,
    sample_info,
)
from sdediff.score import NetworkError, NetworkScore
from sdediff.solvers import DDIM, Exponential, Langevin
from sdediff.testing import gaussian_problem, mixture_problem

F64 = torch.float64
CHAIN = VPSDE.from_betas(np.linspace(1e-3, 0.3, 60))
READABLE = {name for name in methods() if name.startswith(("rosenbrock", "rk45", "rk23", "dopri", "scipy", "torch", "gotta", "picard", "mala"))}
LINEAR = [name for name in methods() if name not in READABLE]
SETTINGS = [(VPSDE(), "eps", "t"), (EDMSDE(), "edm", "edm"), (RectifiedFlow(), "velocity", "t"), (CHAIN, "x0", "index"), (VPSDE(), "v", "lam"),
            (EDMSDE(), "score", "sigma")]


def net(x, c, shift=0.0):
    mix = torch.tensor([[0.8, -0.5], [0.3, 0.6]], dtype=x.dtype)
    return 0.5 * torch.tanh(x @ mix + shift) + 0.1 * torch.sin(c.to(x.dtype).clamp(-9, 9))[:, None]


def both(sde, score, **call):
    """The same run from the table and by readable steps."""
    a, b = (sample_info(sde, score, **call, table=table) for table in (True, False))
    assert a.explain.endswith("coefficient table") and b.explain.endswith("readable steps: table=False")
    assert a.nfe == b.nfe and a.times == b.times and a.seed == b.seed
    return a, b


# -- the same result -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name, setting", [(name, i % len(SETTINGS)) for i, name in enumerate(LINEAR)]
                         + list(itertools.product(("ddim", "dpm++2m", "unipc-2", "edm-stochastic", "pc"), range(len(SETTINGS)))))
def test_the_table_gives_what_the_steps_give(name, setting):
    """Every state of the trajectory, float64, to rounding; methods that extrapolate amplify it."""
    sde, predicts, time_input = SETTINGS[setting]
    options = {"steps_per_level": 12} if name == "annealed-langevin" else {}
    if isinstance(sde, RectifiedFlow):                  # black-box SDE methods start where alpha > 0
        options["t_start"] = 0.95
    a, b = both(sde, from_network(net, predicts, time_input=time_input), shape=(3, 2), method=name, steps=6, seed=1, dtype=F64, record=True,
                **options)
    size = b.trajectory.abs().amax((1, 2), keepdim=True)
    assert ((a.trajectory - b.trajectory).abs() <= 1e-12 * size).all()


@pytest.mark.parametrize("noise", ["white", "brownian", "generator"])
@pytest.mark.parametrize("name", ["euler-maruyama", "sra1", "seeds-3", "edm-stochastic", "restart", "pc"])
def test_every_source_gives_both_paths_the_same_noise(name, noise):
    run = lambda table: sample(VPSDE(), from_network(net), shape=(3, 2), method=name, steps=5, dtype=F64, table=table,
                               **({"seed": torch.Generator().manual_seed(3)} if noise == "generator" else {"seed": 3, "noise": noise}))
    assert torch.allclose(run(True), run(False), rtol=1e-11, atol=1e-12)


def test_a_source_of_ones_own_is_asked_what_the_step_asks():
    class Louder(random.Noise):
        shape, dtype, device = (3, 2), torch.float32, torch.device("cpu")

        def __init__(self, plain):
            self.plain = plain

        def at(self, step):
            return Louder(self.plain.at(step))

        def within(self):
            return Louder(self.plain.within())

        def normal(self, use=1):
            return self.plain.normal(use)

        def increment(self, t, s):
            return 3.0 * super().increment(t, s)

    loud = Louder(random.WhiteNoise(2, (3, 2)))
    run = lambda table: sample(VPSDE(), from_network(net), shape=(3, 2), method="euler-maruyama", steps=4, noise=loud, table=table)
    plain = sample(VPSDE(), from_network(net), shape=(3, 2), method="euler-maruyama", steps=4, seed=2)
    assert torch.allclose(run(True), run(False), rtol=1e-4) and not torch.allclose(run(True), plain, rtol=0.1)


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "eab-3", "unipc-2", "heun"])
def test_single_precision_loses_no_more_than_readable_steps(name):
    score, x = from_network(net), torch.linspace(-2, 2, 128).view(64, 2)
    a, b = both(VPSDE(), score, x_init=x, method=name, steps=40)
    exact = sample(VPSDE(), score, x_init=x.double(), method=name, steps=40)
    mine, theirs = ((v.x - exact).square().mean().sqrt() / exact.square().mean().sqrt() for v in (a, b))
    assert mine <= 2 * theirs + 2e-7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, F64])
def test_networks_of_another_dtype(dtype):
    layer = torch.nn.Linear(2, 2, dtype=dtype)
    seen = set()

    def network(x, c):
        seen.add((x.dtype, c.dtype))
        return layer(x)

    module = torch.nn.Module()
    module.layer, module.forward = layer, network
    x = torch.linspace(-1, 1, 8).view(4, 2)
    a, b = both(VPSDE(), from_network(module), x_init=x, method="dpm++2m", steps=4)
    assert seen == {(dtype, dtype)} and a.x.dtype == torch.float32
    assert torch.allclose(a.x, b.x, rtol=1e-4 if dtype == F64 else 0.05, atol=1e-4 if dtype == F64 else 0.05)


def test_encoding_and_half_precision_states():
    x = torch.linspace(-1, 1, 8, dtype=F64).view(4, 2)
    z = [encode(VPSDE(), from_network(net), x, method="dpm++2m", steps=8, table=table) for table in (True, False)]
    assert torch.allclose(*z, rtol=1e-10)
    a, b = both(VPSDE(), from_network(net), x_init=x.to(torch.bfloat16), method="heun", steps=4)
    assert a.x.dtype == torch.bfloat16 and torch.allclose(a.x, b.x, rtol=0.02)


@pytest.mark.parametrize("size", [1, 3, 7, 64])
@pytest.mark.parametrize("name", ["ddpm", "dpm++2m", "heun"])
def test_a_batch_is_bit_for_bit_its_samples(name, size):
    score = from_network(lambda x, c: torch.tanh(x) * 0.7)
    whole = sample(VPSDE(), score, shape=(67, 2), method=name, steps=6, seed=4)
    assert torch.equal(whole[:size], sample(VPSDE(), score, shape=(size, 2), method=name, steps=6, seed=4))


# -- which path, and what the network sees ----------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(READABLE - {"mala"}))
def test_what_is_not_linear_takes_readable_steps_and_says_why(name):
    info = sample_info(VPSDE(), gaussian_problem().target.score, shape=(2, 3), method=name, steps=3, seed=0, dtype=F64)
    assert re.search(r"readable steps: .*(linear|chooses|another library|tensors)", info.explain), info.explain


def test_norms_and_metropolis_take_readable_steps():
    assert "readable steps" in sample_info(VPSDE(), from_network(net), shape=(2, 2), method="pc", rule="norm", steps=2, seed=0).explain
    density = mixture_problem().target.log_prob
    assert "readable steps" in sample_info(VPSDE(), mixture_problem().target.score, shape=(2, 2), method="mala", density=density, steps=2,
                                           seed=0).explain


@pytest.mark.parametrize("score", [mixture_problem().target.score, from_score(lambda x, t: -x),
                                   lambda x, level: Prediction(x, level, x0=torch.tanh(x), eps=x - torch.tanh(x))], ids=["target", "formula", "own"])
@pytest.mark.parametrize("name", ["dpm++2m", "ddpm", "heun"])
def test_scores_of_any_kind(score, name):
    a, b = both(VPSDE(), score, shape=(4, 2), method=name, steps=6, seed=0, dtype=F64)
    assert torch.allclose(a.x, b.x, rtol=1e-11, atol=1e-13)


def test_a_score_that_answers_about_another_state_is_taken_at_its_word():
    calls = []

    def score(x, level):
        calls.append(level.t)
        return Prediction(x.clamp(-1, 1), level, eps=0.3 * x)

    run = lambda **how: sample_info(VPSDE(), score, shape=(4, 2), method="dpm++2m", steps=4, seed=0, dtype=F64, **how)
    info = run()
    assert "another state" in info.explain and len(calls) == info.nfe == 4 and torch.equal(info.x, run(table=False).x)


def test_a_network_score_of_ones_own_kind_is_called_as_it_is():
    class Halved(NetworkScore):
        def __call__(self, x, level):
            return Prediction(x, level, eps=0.5 * super().__call__(x, level).eps)

    halved = Halved(net, "eps", "t")
    x = torch.ones(2, 2, dtype=F64)
    expected = sample(VPSDE(), from_network(lambda x, c: 0.5 * net(x, c)), x_init=x, steps=5)
    assert torch.allclose(sample(VPSDE(), halved, x_init=x, steps=5), expected, rtol=1e-12)


@pytest.mark.parametrize("sde, time_input", [(VPSDE(), "t"), (VPSDE(), lambda m: m.sigma), (VPSDE(), lambda m: torch.tensor([m.t])),
                                             (CHAIN, "index"), (CHAIN, lambda m: int(m.t))])
def test_the_network_is_asked_the_same_questions(sde, time_input):
    """Inputs, time inputs and conditions; also where a step between knots makes the index a fraction."""
    def asked(table, name):
        seen = []

        def network(x, c, y):
            seen.append((x.clone(), c.clone(), y))
            c.add_(1.0 if c.is_floating_point() else 1)          # c is the network's own
            return torch.tanh(x) * y[:, None]

        sample(sde, from_network(network, time_input=time_input), shape=(5, 2), method=name, steps=4, seed=0, dtype=F64, table=table,
               conditions={"y": torch.linspace(0, 1, 5, dtype=F64)})
        return seen

    for name in ("dpm++2m", "dpm++3s"):
        for (x, c, y), (x_, c_, y_) in zip(*(asked(table, name) for table in (True, False)), strict=True):
            assert c.dtype == c_.dtype and torch.equal(c, c_) and torch.equal(y, y_) and torch.allclose(x, x_, rtol=1e-11, atol=1e-12)


def test_networks_that_reuse_their_output_or_return_their_input():
    buffer = torch.zeros(3, 2, dtype=F64)
    for network in (lambda x, c: buffer.copy_(net(x, c)), lambda x, c: x):
        for name in ("ddim", "dpm++2m", "heun", "unipc-2"):
            x = torch.linspace(-1, 1, 6, dtype=F64).view(3, 2)
            got = sample(VPSDE(), from_network(network), x_init=x, method=name, steps=5)
            fresh = from_network(lambda x, c, network=network: network(x, c).clone())
            assert torch.allclose(got, sample(VPSDE(), fresh, x_init=x, method=name, steps=5, table=False), rtol=1e-11)
            assert got.data_ptr() not in (buffer.data_ptr(), x.data_ptr())


@pytest.mark.parametrize("fault, message", [(lambda x: x[:1], r"shape \(1, 2\)"), (lambda x: x.add_(1.0), "in place"), (lambda x: x * math.nan, "NaN or inf"),
                                            (lambda x: x.long(), "int64"), (lambda x: [x], "list")])
@pytest.mark.parametrize("name", ["heun", "unipc-2"])
def test_faults_are_named_at_their_call(fault, message, name):
    calls, bad = itertools.count(1), []

    def network(x, c):
        bad.extend([x.clone()] if next(calls) == 3 else [])
        return fault(x) if bad and torch.equal(x, bad[0]) else 0.1 * x

    with pytest.raises(NetworkError, match=message + r".*call 3, step \d, t=0\.") as caught:
        sample(VPSDE(), from_network(network), shape=(2, 2), method=name, steps=5, seed=0)
    assert (next(calls) == 4 or "NaN" in message) and "step 1" in str(caught.value)


@pytest.mark.parametrize("rows", [3, 20, 10_000], ids=["few", "small", "large"])        # a state vouches for small ones
@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("stumbles", [False, True])
def test_an_output_that_is_not_finite_is_named_wherever_it_is_looked_at(rows, buffered, stumbles):
    """At call 5 of 12: sample 1 alone; also where the network writes to one buffer, and where what it returned makes it fail itself."""
    given, buffer = [], torch.zeros(rows, 2)

    def network(x, c):
        if stumbles and not bool(torch.isfinite(x).all()):
            raise RuntimeError("its own check")
        given.append(c[0].item())
        out = torch.where(x == x[1], math.inf, x) if len(given) > 4 and given[-1] == given[4] else 0.1 * x
        return buffer.copy_(out) if buffered else out

    with pytest.raises(NetworkError, match=rf"NaN or inf \(eps in 1 of {rows} samples, first sample 1; call 5, step 4, t="):
        sample(VPSDE(), from_network(network), shape=(rows, 2), method="ddim", steps=12, seed=0)


@pytest.mark.parametrize("name, setting", [(name, i % len(SETTINGS)) for i, name in enumerate(LINEAR)])
def test_no_output_escapes_even_if_the_network_makes_finite_what_is_not(name, setting):
    """A network that launders its input: whichever call returns NaN is named, so no state that vouches stands for too many outputs."""
    sde, predicts, time_input = SETTINGS[setting]
    inputs, bad = [], []

    def network(x, c):
        x = x.nan_to_num()
        inputs.append(x.clone())
        out = 0.1 * torch.tanh(x + 0.1 * c.to(x.dtype)[:, None])
        return out * math.nan if any(torch.equal(x, b) for b in bad) else out

    call = {"shape": (4, 2), "method": name, "steps": 9, "seed": 0, "dtype": F64, "t_start": 0.9 * sde.t_max}
    score = from_network(network, predicts, time_input=time_input)
    sample(sde, score, **call)
    given = list(inputs)
    for x in given:
        bad[:] = [x]
        first = next(k for k, earlier in enumerate(given, 1) if torch.equal(earlier, x))
        with pytest.raises(NetworkError, match=rf"NaN or inf \(.* call {first},"):
            sample(sde, score, **call)


def test_time_inputs_are_kept_for_the_next_run_unless_the_network_writes_into_them():
    given = []

    def network(x, c, writes):
        given.append(c.data_ptr())
        return 0.1 * x + (c.mul_(2.0) if writes else 2.0 * c)[:, None]

    run = lambda writes: (given.clear(), sample(VPSDE(), from_network(lambda x, c: network(x, c, writes)), shape=(3, 2), method="ddim", steps=7, seed=0))[1]
    want, kept = run(False), list(given)
    assert torch.equal(run(False), want) and given == kept
    assert torch.equal(run(True), want) and torch.equal(run(True), want) and torch.equal(run(False), want)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(x, want) for x in pool.map(lambda k: run(k % 2 == 0), range(12)))


def test_a_network_that_is_no_function_of_its_input_is_named_as_such():
    calls = itertools.count(1)
    score = from_network(lambda x, c: x * (math.nan if next(calls) == 5 else 0.1))
    with pytest.raises(NetworkError, match=r"NaN or inf before the end, but not when the run was made again.*table=False"):
        sample(VPSDE(), score, shape=(3, 2), method="ddim", steps=12, seed=0)
    assert next(calls) == 12 + 12 + 1


def test_sums_that_are_read_at_the_end_name_the_call_of_their_block():
    """As on a device, where a compiled block of calls 4 to 6 returned NaN at its second."""
    score, levels = from_network(net), VPSDE().levels([0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1])
    p, watched = programs.program(DDIM(), VPSDE(), levels, 0.0, score, None), execution.Watched(score)
    watched.later += [("eps", torch.zeros(6), 0), ("output", torch.tensor([0.0, math.nan, 0.0]), 3)]
    execution.finish(p, torch.zeros(2, 2), watched)
    with pytest.raises(NetworkError, match=r"\(output; call 5, step 4, t=0\.3\)"):
        execution.finish(p, torch.full((2, 2), math.nan), watched)


def test_noise_that_does_not_come_again_is_not_trusted():
    calls = itertools.count(1)
    score = from_network(lambda x, c: x * (math.nan if next(calls) == 5 else 0.1))
    with pytest.raises(NetworkError, match=r"call 5, step 4, t="):
        sample(VPSDE(), score, shape=(3, 2), method="ddpm", steps=12, seed=torch.Generator().manual_seed(0))
    assert next(calls) == 6


def test_a_network_fails_with_its_own_error_where_its_outputs_were_finite():
    def network(x, c):
        if next(calls) == 5:
            raise RuntimeError("its own")
        return x

    calls = itertools.count(1)
    with pytest.raises(RuntimeError, match="its own"):
        sample(VPSDE(), from_network(network), shape=(20, 2), method="ddim", steps=12, seed=0)


def test_interruptions_pass_and_inference_mode_works():
    def network(x, c):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(VPSDE(), from_network(network), shape=(2, 2), steps=2, seed=0)
    with torch.inference_mode():
        inside = sample(VPSDE(), from_network(net), shape=(2, 2), steps=4, seed=0)
    with pytest.raises(NetworkError, match="in place"):             # inside there is no version to tell it, so the network gets a copy
        sample(VPSDE(), from_network(lambda x, c: x.add_(1)), x_init=inside, steps=2)
    assert torch.equal(inside, sample(VPSDE(), from_network(net), shape=(2, 2), steps=4, seed=0))


# -- the program ------------------------------------------------------------------------------------------------------
def program(solver, steps, predicts="eps", sde=None, eta=0.0, source=None):
    sde = sde or VPSDE()
    return programs.program(solver, sde, sde.levels(np.linspace(1, 0.01, steps + 1).tolist()), eta, from_network(net, predicts), source)


@pytest.mark.parametrize("solver", [DDIM(), Exponential(2), Exponential(4), method("unipc-3").solver, method("rk4").solver, Langevin(steps=20)])
@pytest.mark.parametrize("predicts", ["eps", "x0", "edm"])
def test_memory_and_work_are_flat_in_the_number_of_steps(solver, predicts):
    few, many = (program(solver, n, predicts, source=random.WhiteNoise(0, (1, 1))) for n in (12, 60))
    assert few.registers == many.registers <= 16
    assert many.cost - few.cost == pytest.approx(4 * few.cost, rel=0.2)
    assert len(many.levels) > len(few.levels)


def test_a_step_of_ddim_is_one_combination_and_preconditioning_is_free():
    for predicts in ("eps", "x0", "v", "edm"):
        p = program(DDIM(), 10, predicts, EDMSDE() if predicts == "edm" else None)
        kinds = [[type(op).__name__ for op in step.ops] for step in p.steps]
        assert kinds[1:] == [["Evaluate", "Sum"]] * 9
        assert kinds[0] == ["Sum", "Evaluate", "Sum"] if predicts == "edm" else ["Evaluate", "Sum"]
    assert program(DDIM(), 10).cost == 20 and program(Exponential(2), 10).cost <= 40


def test_tables_are_kept_for_values_and_made_anew_for_functions():
    assert program(Exponential(2), 5) is program(Exponential(2), 5) is not program(Exponential(2), 6)
    assert program(Exponential(2), 5) is not program(Exponential(2), 5, "v")
    now = 1.0
    eta = lambda level: now
    first = program(Exponential(1), 5, eta=eta, source=random.WhiteNoise(0, (1, 1)))
    now = 0.0
    assert first.asks and not program(Exponential(1), 5, eta=eta, source=random.WhiteNoise(0, (1, 1))).asks
    assert not programs.is_value(dataclasses.make_dataclass("Mutable", ["a"])(1))

    class Own(DDIM):                                    # may hold anything
        pass

    assert programs.is_value(DDIM()) and not programs.is_value(Own())


def test_a_refusal_is_that_of_the_readable_step():
    """eps says nothing of x0 at alpha = 0: the trace stops there, and the readable step names it."""
    with pytest.raises(ValueError, match="alpha = 0"):
        sample(RectifiedFlow(), from_network(net, "eps"), shape=(2, 2), method="dpm++2m", steps=4, seed=0)


# -- no waiting, no growth --------------------------------------------------------------------------------------------
def profiled(steps, name, device="cpu"):
    """Events of a run between its first and its last network call, and the most bytes that it holds beyond its start."""
    score = from_network(lambda x, c: torch.erf(x))
    x = torch.zeros(1000, 2, device=device)
    run = lambda: sample(VPSDE(), score, x_init=x, method=name, steps=steps, seed=0)
    run()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])], profile_memory=True) as prof:
        run()
    with tempfile.TemporaryDirectory() as folder:
        prof.export_chrome_trace(f"{folder}/trace.json")
        events = [e for e in json.loads(pathlib.Path(folder, "trace.json").read_text())["traceEvents"] if "ts" in e]
    calls = [e["ts"] for e in events if e["name"] == "aten::erf"]
    inside = [e for e in events if min(calls) <= e["ts"] <= max(calls)]
    held = [e["args"]["Total Allocated"] for e in inside if e["name"] == "[memory]" and e["args"]["Device Type"] == (1 if device == "cuda" else 0)]
    return [e["name"] for e in inside], (max(held) - min(held)) / x.nbytes, len(calls)


WAITS = {"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize",
         "cudaMemcpy"}


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "ddpm", "heun", "euler-maruyama"])
def test_nothing_is_read_and_nothing_grows_between_the_first_call_and_the_last(name):
    (names, few, _), (_, many, calls) = (profiled(n, name) for n in (70, 105))          # noise is drawn ahead, 32 steps at once
    assert not WAITS & set(names)
    assert calls == (210 if name == "heun" else 105)
    noisy = method(name).solver.noise == "always" or method(name).eta
    assert many <= few + 2 and (noisy or few <= 16 + 2)         # time inputs that are not kept come in blocks of 16 (B,)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "heun"])
def test_nothing_waits_on_cuda(cuda, name):
    (names, few, _), (_, many, _) = (profiled(n, name, "cuda") for n in (20, 60))
    assert not WAITS & set(names) and many <= few + 2


# -- mixed precision --------------------------------------------------------------------------------------------------
def test_autocast_runs_the_network_in_its_dtype_and_keeps_the_state():
    layer, seen = torch.nn.Linear(2, 2), set()

    def network(x, c):
        out = layer(x)
        seen.add((x.dtype, out.dtype))
        return out

    x = torch.linspace(-1, 1, 64).view(32, 2)
    run = lambda **how: sample(VPSDE(), from_network(network, **how.pop("made", {})), x_init=x, method="dpm++2m", steps=10, **how)
    plain = run()
    assert seen == {(torch.float32, torch.float32)}
    seen.clear()
    half = [run(autocast=torch.bfloat16), run(made={"autocast": torch.bfloat16}), run(autocast=torch.bfloat16, table=False)]
    assert seen == {(torch.float32, torch.bfloat16)}
    assert all(v.dtype == torch.float32 for v in half) and torch.equal(half[0], half[1])
    assert torch.allclose(half[0], half[2], rtol=0.05, atol=0.02)
    assert 1e-5 < (half[0] - plain).square().mean().sqrt() / plain.square().mean().sqrt() < 0.03
    with pytest.raises(TypeError, match=r"autocast=torch.int8"):
        run(autocast=torch.int8)
    with pytest.raises(TypeError, match="no network"):
        sample(VPSDE(), from_score(lambda x, t: -x), x_init=x, steps=2, autocast=torch.bfloat16)


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "heun", "eab-3"])
def test_the_error_of_a_rounded_network_is_of_the_size_of_its_rounding(name):
    """An exact score, its output rounded to bfloat16 (8 bits): the samples move by some of its unit roundoff, 2^-9, and no method
    amplifies it by more than what eps costs where alpha is small."""
    problem = mixture_problem()
    exact = lambda x, c: problem.target.score(x, VPSDE().at(float(c[0]))).eps
    x = problem.start(1.0)
    clean, rounded = (sample(VPSDE(), from_network(f), x_init=x, method=name, steps=20)
                      for f in (exact, lambda x, c: exact(x, c).to(torch.bfloat16).to(x.dtype)))
    error = (clean - rounded).square().mean().sqrt()
    assert 2.0**-13 < error < 2.0**-4


# -- compiled ---------------------------------------------------------------------------------------------------------
class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x, c):
        return torch.tanh(self.layer(x)) + c[:, None]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_runs_agree_and_are_kept():
    score = from_network(Small())
    call = {"shape": (4, 2), "method": "dpm++2m-sde", "steps": 6, "t_end": 0.01}
    for seed in (0, 1):
        info = sample_info(VPSDE(), score, compile=True, seed=seed, **call)
        plain = sample_info(VPSDE(), score, seed=seed, **call)
        assert "6 steps compiled in blocks of up to 6" in info.explain and (info.warmup > 0) == (seed == 0)
        assert torch.allclose(info.x, plain.x, rtol=1e-3, atol=1e-4) and info.nfe == plain.nfe == 6

    def stubborn(x, c):
        torch._dynamo.graph_break()
        return x

    with pytest.raises(RuntimeError, match=r"compile=True.*stubborn.*compile=False"):
        sample(VPSDE(), from_network(stubborn), shape=(2, 2), method="dpm++2m", steps=4, seed=0, compile=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name, compiled", [("ddpm", 70), ("dpm++2m", 68), ("heun", 70)])
def test_a_long_run_is_compiled_in_blocks(name, compiled):
    score, call = from_network(Small()), {"shape": (4, 2), "method": name, "steps": 70, "seed": 0, "dtype": torch.float32}
    info = sample_info(VPSDE(), score, compile=True, **call)
    assert f"{compiled} steps compiled in blocks of up to 3" in info.explain
    assert torch.allclose(info.x, sample(VPSDE(), score, **call), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rows", [4, 5000], ids=["vouched for", "summed"])
def test_faults_of_a_compiled_network_are_named(rows):
    call = {"shape": (rows, 2), "method": "ddim", "steps": 6, "seed": 0, "compile": True}
    levels = VPSDE().levels(sample_info(VPSDE(), from_network(net), shape=(1, 2), method="ddim", steps=6, seed=0).times)
    with pytest.raises(NetworkError, match=rf"NaN or inf \(.*call 4, step 3, t={levels[3].t:.6g}"):
        sample(VPSDE(), from_network(lambda x, c: torch.where((c < levels[2].t - 1e-4)[:, None], math.nan, 0.1 * x)), **call)
    with pytest.raises(NetworkError, match=r"shape .*call 1, step 0"):
        sample(VPSDE(), from_network(lambda x, c: x[:, :1]), **call)
    with pytest.raises(NetworkError, match=r"in place.*call 1, step 0"):
        sample(VPSDE(), from_network(lambda x, c: x.mul_(0.1)), **call)


def test_what_cannot_be_compiled_is_refused():
    with pytest.raises(TypeError, match=r"compile=True.*from_network"):
        sample(VPSDE(), from_score(lambda x, t: -x), shape=(2, 2), steps=4, seed=0, compile=True)
    with pytest.raises(ValueError, match=r"compile=True.*readable steps"):
        sample(VPSDE(), from_network(net), shape=(2, 2), method="rosenbrock-2", steps=4, seed=0, compile=True)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "ddpm"])
def test_one_cuda_graph_gives_what_the_table_gives(cuda, name):
    score = from_network(Small().cuda())
    for seed in (0, 1):
        call = {"shape": (64, 2), "method": name, "steps": 12, "seed": seed, "device": "cuda"}
        graph = sample_info(VPSDE(), score, compile=True, **call)
        assert "one CUDA graph" in graph.explain and (graph.warmup > 0) == (seed == 0)
        assert torch.allclose(graph.x, sample(VPSDE(), score, **call), rtol=1e-3, atol=1e-4)
    generator = torch.Generator("cuda")
    draws = [sample(VPSDE(), score, shape=(64, 2), method=name, steps=12, seed=generator.manual_seed(3), device="cuda", compile=c) for c in (True, False)]
    assert torch.allclose(*draws, rtol=1e-3, atol=1e-4)


def test_the_first_float_of_the_readable_path_is_that_of_the_loop():
    """``iterate``, the loop that the front door stands for, is the readable path."""
    score, x, levels = from_network(net), torch.ones(2, 2, dtype=F64), VPSDE().levels([0.9, 0.5, 0.2])
    *_, state = sdediff.iterate(ReverseSDE(VPSDE(), score), DDIM(), x, levels)
    assert torch.equal(state.x, sample(VPSDE(), score, x_init=x, method="ddim", grid=[0.9, 0.5, 0.2], table=False))
