"""Linear operators: each proves itself, agrees with its dense matrix, and a wrong one is refused by name."""
import dataclasses

import pytest
import torch

from sdediff import operators
from sdediff.operators import Blur, Colourise, Downsample, Mask, Matrix, Operator

F64 = torch.float64
G = torch.Generator().manual_seed(0)
EVERY = {
    "mask": Mask(torch.rand(3, 4, 4, generator=G) > 0.5), "mask-1": Mask(torch.tensor([True, False])), "downsample": Downsample((1, 8, 8)),
    "downsample-4": Downsample((3, 8, 4), 4), "colourise": Colourise((3, 4, 5)), "blur": Blur((1, 8, 8)), "blur-wide": Blur((2, 8, 6), 2.5),
    "matrix": Matrix(torch.randn(3, 5, generator=G)), "tall": Matrix(torch.randn(6, 4, generator=G), (2, 2)),
    "deficient": Matrix(torch.ones(3, 4))}


@dataclasses.dataclass(frozen=True)
class Differences(Operator):
    """An operator as a user writes it: forward alone."""

    event: tuple[int, ...] = (6,)

    def forward(self, x):
        return x[:, 1:] - x[:, :-1]


EVERY["own"] = Differences()


@pytest.fixture(params=EVERY)
def operator(request):
    return EVERY[request.param]


def test_it_proves_itself(operator):
    operators.check(operator)


def test_it_is_its_matrix(operator):
    a = operator.matrix
    x, y = torch.randn(4, *operator.event, generator=G, dtype=F64), torch.randn(4, *operator.measured, generator=G, dtype=F64)
    assert torch.allclose(operator(x).flatten(1), x.flatten(1) @ a.T, atol=1e-12)
    assert torch.allclose(operator.transpose(y).flatten(1), y.flatten(1) @ a, atol=1e-12)
    assert operator.transpose(y).shape == x.shape


@pytest.mark.parametrize("prior", [0.7, 1e-8, torch.tensor([0.2, 0.7, 3.0, 0.0], dtype=F64)])
def test_gain_solves_the_normal_equations(operator, prior):
    a, v, y = operator.matrix, 0.3, torch.randn(4, *operator.measured, generator=G, dtype=F64)
    for k, r2 in enumerate(prior.tolist() if isinstance(prior, torch.Tensor) else [prior] * 4):
        expected = r2 * a.T @ torch.linalg.solve(r2 * a @ a.T + v * torch.eye(len(a), dtype=F64), y[k].flatten())
        assert torch.allclose(operator.gain(y, prior, v)[k].flatten(), expected, atol=1e-12)


def test_pinv_is_the_pseudo_inverse(operator):
    y = torch.randn(4, *operator.measured, generator=G, dtype=F64)
    expected = y.flatten(1) @ torch.linalg.pinv(operator.matrix, rtol=1e-7).T
    assert torch.allclose(operator.pinv(y).flatten(1), expected, atol=1e-9 * float(expected.abs().max()))
    assert torch.allclose(operator.gain(y, float("inf"), 0.3), operator.pinv(y), atol=1e-12)


def test_singular_values_are_those_of_the_matrix(operator):
    s = torch.linalg.svdvals(operator.matrix)
    assert torch.allclose(operator.singular.sort(descending=True).values, s[:len(operator.singular)], atol=1e-12)
    assert float(s[len(operator.singular):].max() if len(s) > len(operator.singular) else 0.0) < 1e-12


def test_white_noise_has_white_coordinates(operator):
    z = torch.randn(20_000, *operator.event, generator=torch.Generator().manual_seed(1), dtype=F64)
    power = operator.right(z).abs().square().mean(0)
    assert bool(((power - 1).abs() < 5 * (2 / 20_000)**0.5).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_follow_the_dtype(operator, dtype):
    x, y = torch.randn(2, *operator.event, dtype=dtype), torch.randn(2, *operator.measured, dtype=dtype)
    assert {v.dtype for v in (operator(x), operator.transpose(y), operator.pinv(y), operator.gain(y, 0.5, 0.1))} == {dtype}


@dataclasses.dataclass(frozen=True)
class Wrong(Operator):
    """Claims that are false, one at a time."""

    lie: str
    event: tuple[int, ...] = (4,)

    def forward(self, x):
        return x[:, :3] + (1.0 if self.lie == "affine" else 0.0)

    def transpose(self, y):
        scale = 1.001 if self.lie == "transpose" else 1.0
        return torch.cat([scale * y, 0 * y[:, :1]], 1)[:, :3 if self.lie == "shape" else 4]

    def left(self, y):
        return (2 if self.lie == "left" else 1) * super().left(y)

    def back(self, c):
        return (2 if self.lie == "back" else 1) * super().back(c)


@pytest.mark.parametrize(("lie", "said"), [
    ("affine", "A is not linear"), ("transpose", r"A\^T is not the transpose of A"), ("shape", r"A\^T y has shape \(3, 3\)"),
    ("left", "the decomposition is not A's"), ("back", "V is not orthonormal")])
def test_a_false_claim_is_refused_by_name(lie, said):
    operators.check(Wrong("none"))
    with pytest.raises(ValueError, match=f"Wrong: .*{said}" if lie != "shape" else said):
        operators.check(Wrong(lie))
    if lie in ("left", "back"):
        operators.check(Wrong(lie), decomposition=False)


@pytest.mark.parametrize(("make", "error", "said"), [
    (lambda: Mask(torch.tensor([1.0, 0.0])), TypeError, "known=Tensor .* of torch.float32"),
    (lambda: Mask(torch.tensor([False, False])), ValueError, "no coordinate is"),
    (lambda: Downsample((1, 9, 8), 2), ValueError, "factor=2: it does not divide"),
    (lambda: Downsample((8,), 2), ValueError, r"event=\(8,\): expected .*the shape of one image"),
    (lambda: Blur((1, 8, 8), 0.0), ValueError, "std=0.0"),
    (lambda: Matrix(torch.ones(3)), ValueError, r"weights.shape=\(3,\)"),
    (lambda: Matrix(torch.tensor([[float("nan")]])), ValueError, "weights holds NaN"),
    (lambda: Matrix(torch.ones(2, 4), (3,)), ValueError, r"event=\(3,\)"),
    (lambda: Matrix(torch.zeros(2, 3)).singular, ValueError, "measures nothing"),
    (lambda: EVERY["downsample"](torch.zeros(2, 1, 4, 4)), ValueError, r"measures events of shape \(1, 8, 8\)"),
    (lambda: EVERY["downsample"](torch.zeros(2, 1, 8, 8, dtype=torch.int64)), TypeError, "torch.int64"),
    (lambda: operators.check(lambda x: x), TypeError, "operator=function")])
def test_wrong_arguments_are_refused_by_name(make, error, said):
    with pytest.raises(error, match=said):
        make()


def test_a_large_event_needs_no_matrix():
    big = Downsample((3, 256, 256), 4)
    operators.check(big)
    with pytest.raises(ValueError, match="a matrix over 196608 coordinates"):
        big.matrix  # noqa: B018
