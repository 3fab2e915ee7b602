"""A fault of the network ends the run at the call where it happens, by name, step and time, on every path; what is no fault is served;
and what the caller raises leaves everything as it was."""
import math
import re

import pytest
import torch

import sdediff
from sdediff import VPSDE, from_network, from_score, guidance, training

SDE = VPSDE()
X = torch.tensor([[0.5, -0.25], [1.0, 0.75], [-0.5, 0.125]])
AT = 3                                          # the call that goes wrong


class Net:
    """x/10, and ``fault(x)`` at what one call is given."""

    def __init__(self, fault=None, at=AT):
        self.fault, self.at, self.calls, self.bad, self.__name__ = fault, at, 0, None, "net"

    def __call__(self, x, c, **conditions):
        self.calls += 1
        if self.fault is not None and self.calls == self.at:
            self.bad = x.detach().clone()
        return self.fault(x) if self.bad is not None and torch.equal(x, self.bad) else 0.1 * x


FAULTS = [
    (lambda x: x[:, :1], r"shape \(3, 1\)"), (lambda x: x[:1], r"shape \(1, 2\)"), (lambda x: x.sum(), r"shape \(\)"),
    (lambda x: x[None], r"shape \(1, 3, 2\)"), (lambda x: None, "NoneType"), (lambda x: (x, x), "tuple"), (lambda x: 0.1, "float"),
    (lambda x: x.detach().numpy(), "ndarray"), (lambda x: x.to(torch.complex64), "complex64"), (lambda x: x.long(), "int64"),
    (lambda x: x > 0, "bool"),
    (lambda x: x * math.nan, "NaN or inf"), (lambda x: torch.where(x == x[1, 0], math.inf, x), "1 of 3 samples, first sample 1"),
    (lambda x: x.detach().add_(1.0), "in place"), (lambda x: x.to("meta"), "meta")]
PATHS = {
    "table": lambda net: sdediff.sample(SDE, from_network(net), shape=(3, 2), method="dpm++2m", steps=5, seed=0),
    "readable": lambda net: sdediff.sample(SDE, from_network(net), shape=(3, 2), method="dpm++2m", steps=5, seed=0, table=False),
    "stochastic": lambda net: sdediff.sample(SDE, from_network(net), shape=(3, 2), method="ddpm", steps=5, seed=0),
    "edm": lambda net: sdediff.sample(SDE, from_network(net, "edm"), shape=(3, 2), method="heun", steps=5, seed=0),
    "function": lambda net: sdediff.sample(SDE, from_score(lambda x, t: net(x, t)), shape=(3, 2), method="ddim", steps=5, seed=0),
    "chunks": lambda net: sdediff.sample(SDE, from_network(net), shape=(3, 2), method="ddim", steps=5, seed=0, chunk=3),
    "encode": lambda net: sdediff.encode(SDE, from_network(net), X, method="heun", steps=4),
    "guided": lambda net: sdediff.sample(SDE, guidance.temperature(from_network(net), 0.5), shape=(3, 2), method="ddim", steps=5, seed=0),
    "adaptive": lambda net: sdediff.sample(SDE, from_network(net), shape=(3, 2), method="rk45", steps=2, seed=0),
    "scipy": lambda net: sdediff.sample(SDE, from_network(net), shape=(3, 2), method="scipy-rk45", steps=2, seed=0),
}
TRUSTED = {"table", "stochastic", "edm", "function", "chunks", "encode"}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fault, message", FAULTS, ids=[message for _, message in FAULTS])
def test_a_fault_is_named_at_the_call(path, fault, message):
    net = Net(fault)
    with pytest.raises(sdediff.NetworkError, match=message) as caught:
        PATHS[path](net)
    assert re.search(rf"call {AT}, step \d+, t=\d", str(caught.value))
    again = path in TRUSTED and "NaN" in str(caught.value)          # a state vouches for small outputs; a run that is lost is made again
    assert net.calls > 2 * AT if again else net.calls == AT
    assert ("unction" if path == "function" else "net") in str(caught.value)


@pytest.mark.parametrize("fault, message", FAULTS, ids=[message for _, message in FAULTS])
def test_a_fault_in_a_likelihood_or_a_bound_is_named(fault, message):
    message = "gradient|" + message if message in ("int64", "bool", "meta", "in place") else message
    for run in (lambda net: sdediff.log_prob(SDE, from_network(net), X, method="heun", steps=3),
                lambda net: sdediff.elbo(SDE, from_network(net), X, draws=4, seed=0)):
        net = Net(fault)
        with pytest.raises(sdediff.NetworkError, match=message) as caught:
            run(net)
        assert re.search(rf"net.*call {AT}.*t=\d", str(caught.value)) and net.calls == AT


class Module(torch.nn.Module):
    """A network with a parameter, and ``fault(x)`` at one call."""

    def __init__(self, fault=None, at=AT):
        super().__init__()
        self.inner, self.net = torch.nn.Linear(2, 2), Net(fault, at)

    def forward(self, x, c):
        if self.net.calls + 1 != self.net.at:
            return self.net(self.inner(x), c)
        out = self.net(x, c)
        alike = isinstance(out, torch.Tensor) and (out.dtype, out.shape, out.device) == (x.dtype, x.shape, x.device)
        return out + 0 * self.inner(x) if alike else out


@pytest.mark.parametrize("fault, message", FAULTS, ids=[message for _, message in FAULTS])
def test_a_fault_in_training_is_named(fault, message):
    net = Module(fault)
    with pytest.raises((sdediff.NetworkError, FloatingPointError),
                       match={"sh": r"shape \(", "Na": "the loss is nan", "1 ": "the loss is"}.get(message[:2], message)) as caught:
        training.train(from_network(net), SDE, X.repeat(8, 1), training.TrainingConfig(steps=6, batch=8, warmup=1), progress=False)
    assert f"step {AT - 1}" in str(caught.value) and net.net.calls == AT


# -- what is no fault ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["dpm++2m", "unipc-3", "eab-3", "ddpm", "heun", "sde-heun"])
@pytest.mark.parametrize("table", [True, False])
def test_a_network_may_return_its_input_a_view_of_it_or_one_buffer_every_time(method, table):
    buffer = torch.empty(3, 2)
    run = lambda net: sdediff.sample(SDE, from_network(net), shape=(3, 2), method=method, steps=6, seed=0, table=table)
    assert torch.equal(run(lambda x, c: x), run(lambda x, c: x.clone()))
    assert torch.equal(run(lambda x, c: x.flip(1).t().t()), run(lambda x, c: x.flip(1).clone()))
    assert torch.equal(run(lambda x, c: x[:, :1].expand(3, 2)), run(lambda x, c: x[:, :1].expand(3, 2).clone()))
    assert torch.equal(run(lambda x, c: torch.mul(x, 0.1, out=buffer)), run(lambda x, c: torch.mul(x, 0.1)))


# -- what the caller raises ---------------------------------------------------------------------------------------------
class Mine(Exception):
    """An exception of the caller's."""


@pytest.mark.parametrize("error", [Mine, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("path", PATHS)
def test_what_the_caller_raises_passes_and_leaves_everything_as_it_was(path, error):
    def raises(x):
        raise error("mine")

    layer, seen = torch.nn.Linear(2, 2), []
    layer.train()
    handle = layer.register_forward_hook(lambda *_: seen.append(1))
    whole = lambda: PATHS[path](lambda x, c, **conditions: 0.1 * layer(x))
    fresh = whole()
    before = torch.random.get_rng_state()
    broken = Net(raises)
    with pytest.raises(error, match=r"^mine$"):
        PATHS[path](lambda x, c, **conditions: broken(layer(x), c))
    assert torch.equal(before, torch.random.get_rng_state()) and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert layer.training and torch.get_default_dtype() == torch.float32 and len(layer._forward_hooks) == 1
    assert torch.equal(whole(), fresh)
    handle.remove()


def test_a_run_that_fails_takes_no_seed():
    before = torch.random.get_rng_state()
    for run in (lambda net: sdediff.sample(SDE, from_network(net), shape=(3, 2), method="ddpm", steps=5),
                lambda net: sdediff.denoise_from(SDE, from_network(net), X, 0.5, steps=5)):
        with pytest.raises(sdediff.NetworkError):
            run(Net(lambda x: None))
        assert torch.equal(before, torch.random.get_rng_state())


def test_an_interrupted_training_leaves_the_network_in_its_mode():
    def stop(x):
        raise KeyboardInterrupt

    net = Module(stop)
    net.eval()
    with pytest.raises(KeyboardInterrupt):
        training.train(from_network(net), SDE, X.repeat(8, 1), training.TrainingConfig(steps=6, batch=8, warmup=1), progress=False)
    assert not net.training and torch.is_grad_enabled()


@pytest.mark.parametrize("wrong, message", [
    (lambda x: None, "drift"), (lambda x: x[:1], "shape"), (lambda x: x * math.nan, "step 2"),
    (lambda x: x.to(torch.complex64), "complex64")])
def test_a_simulation_names_what_its_callables_return(wrong, message):
    net = Net(wrong)
    with pytest.raises((TypeError, ValueError), match=message):
        sdediff.simulate(x0=X, steps=4, seed=0, drift=net, diffusion=lambda x, t: 1.0)
    assert net.calls == AT
