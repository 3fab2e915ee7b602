"""Noise is a pure function of (seed, sample, label or times), standard normal, independent, and a Brownian path where it
says so."""
import concurrent.futures
import itertools
import math
import random as python_random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from strategies import seeds, shapes

from sdediff import random
from sdediff.random import BrownianPath, GeneratorNoise, WhiteNoise, canonical_seed, quadratic_variation, source
from sdediff.sde import VPSDE

F64 = torch.float64
at = lambda t: SimpleNamespace(t=t)


def z_correlation(a, b):
    """z-score of the correlation of two tensors of independent standard normals."""
    return float((a * b).double().sum()) / math.sqrt(a.numel())


def z_covariance(a, b, cov, va, vb):
    """z-score of the sample mean of a b, for centred Gaussians with these moments: Var(ab) = va vb + cov^2."""
    return float((a * b).mean() - cov) / math.sqrt((va * vb + cov * cov) / a.numel())


# -- purity -------------------------------------------------------------------------------------------------------

@given(seeds, shapes(), st.integers(0, 100), st.integers(0, 3), st.integers(0, 5000))
def test_rows_alone_in_a_batch_and_in_chunks(seed, shape, step, use, first):
    batch, event = shape[0], shape[1:]
    whole = WhiteNoise(seed, shape, first=first).at(step).normal(use)
    assert whole.shape == shape
    for i in range(batch):
        assert torch.equal(WhiteNoise(seed, (1, *event), first=first + i).at(step).normal(use), whole[i:i + 1])
    cut = batch // 2
    parts = [WhiteNoise(seed, (n, *event), first=first + k).at(step).normal(use) for k, n in ((0, cut), (cut, batch - cut))]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("event", [(), (1,), (3, 5), (1, 8, 8), (3, 80, 80)])
def test_purity_across_blocks_windows_and_labels_drawn_ahead(event):
    """A sample alone draws 32 labels at once; a batch of more than a window draws one, in several windows."""
    size, window = max(1, math.prod(event)), random.WINDOW * 2 * random.BLOCK
    batch = window // size + 3
    for first in (0, batch - 1, 77):
        whole = WhiteNoise(7, (batch, *event), first=first).at(40).normal()
        for i in {0, 1, batch // 2, batch - 2, batch - 1}:
            assert torch.equal(WhiteNoise(7, (1, *event), first=first + i).at(40).normal()[0], whole[i])
        assert len(torch.unique(whole.reshape(batch, -1)[:, 0])) > 0.99 * batch             # no sample repeats another
    part = WhiteNoise(7, (2000 // size + 2, *event), first=77).at(40).normal()
    assert torch.equal(part, whole[:len(part)])


def test_tiles_of_a_gpu_cut_anywhere_are_the_same_row():
    """The logic of tiles, with a CPU's generator in a GPU's place."""
    row = lambda start, count: random._tiles([((1, 2), 0), ((1, 3), 0)], start, count, 64, torch.device("cpu"))
    whole = row(0, 300)
    for start, count in ((0, 64), (64, 128), (1, 2), (63, 2), (100, 200), (299, 1), (5, 0)):
        assert torch.equal(row(start, count), whole[:, start:start + count])
    assert len(torch.unique(whole)) == 600


def test_inference_mode_and_default_settings_change_nothing():
    ask = lambda: (WhiteNoise(3, (5, 7)).at(2).normal(), BrownianPath(3, (5, 7)).unit(at(0.9), at(0.2)))
    noise, path = WhiteNoise(3, (5, 7)), BrownianPath(3, (5, 7)).over([at(0.9), at(0.2)])
    random._engine.__dict__.clear()             # as in a thread that begins within it
    random._engine.__init__()
    with torch.inference_mode():
        inside = ask()
        noise.at(2).normal(), path.unit(at(0.9), at(0.2))
    outside = ask()
    again = noise.at(2).normal(), path.unit(at(0.9), at(0.2))
    torch.set_default_dtype(F64)
    wide = ask()
    torch.set_default_dtype(torch.float32)
    for draws in zip(inside, outside, again, wide):
        assert all(torch.equal(draws[0], z) and z.dtype == torch.float32 for z in draws)
    again[0].add_(1)


def test_threads_do_not_disturb_each_other():
    ask = lambda k: (WhiteNoise(k, (300, 50)).at(k).normal(), BrownianPath(k, (300,)).value(0.3))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for k, (z, w) in enumerate(pool.map(ask, range(40))):
            assert torch.equal(z, ask(k)[0])
            assert torch.equal(w, ask(k)[1])


@given(seeds, shapes(4, 3), st.lists(st.tuples(st.integers(0, 70), st.integers(0, 2), st.integers(-1, 3)), min_size=2, max_size=8))
def test_order_of_asking_does_not_matter(seed, shape, asked):
    def ask(noise, step, use, outer):
        return (noise.at(step) if outer < 0 else noise.at(outer).within().at(step)).normal(use)
    shared = WhiteNoise(seed, shape)
    forward = [ask(shared, *a) for a in asked]
    backward = [ask(shared, *a) for a in reversed(asked)][::-1]
    for a, f, b in zip(asked, forward, backward):
        assert torch.equal(f, b)
        assert torch.equal(f, ask(WhiteNoise(seed, shape), *a))


@given(st.lists(seeds, min_size=1, max_size=6, unique=True), shapes(1, 4), st.integers(0, 80), st.randoms(use_true_random=False))
def test_explicit_seeds_belong_to_their_samples(own, shape, step, shuffle):
    event = shape[1:]
    draw = lambda s, cls=WhiteNoise: cls(s, (len(s), *event)).at(step).normal()
    whole, order = draw(own), list(range(len(own)))
    shuffle.shuffle(order)
    assert torch.equal(draw([own[i] for i in order]), whole[order])
    for i, s in enumerate(own):
        assert torch.equal(draw([s]), whole[i:i + 1])
        assert torch.equal(draw(torch.tensor([s, s])), whole[[i, i]])
    assert len({tuple(row.flatten().tolist()) for row in whole}) == len(own)


@settings(max_examples=20)
@given(seeds, shapes(), st.integers(0, 100))
def test_a_seed_means_the_same_noise_in_every_dtype(seed, shape, step):
    single = WhiteNoise(seed, shape).at(step).normal()
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        other = WhiteNoise(seed, shape, dtype=dtype).at(step).normal()
        assert other.dtype == dtype
        assert torch.equal(other, single.to(dtype))
    path = lambda dtype: BrownianPath(seed, shape, dtype=dtype).unit(at(0.7), at(0.2))
    assert torch.equal(path(F64).float(), path(torch.float32))


def test_the_answer_is_the_callers_own():
    noise = WhiteNoise(0, (3, 2))
    z = noise.at(5).normal()
    kept = z.clone()
    z.mul_(0)
    assert torch.equal(noise.at(5).normal(), kept)
    assert kept.untyped_storage().nbytes() == kept.numel() * 4
    path = BrownianPath(0, (3, 2), dtype=F64)
    w = path.value(0.5)
    kept = w.clone()
    w.mul_(0)
    assert torch.equal(path.value(0.5), kept)


@given(seeds, shapes(), st.integers(0, 5000))
@settings(max_examples=20)
def test_initial_is_one_draw_a_run_the_same_for_white_noise_and_paths(seed, shape, first):
    noise = WhiteNoise(seed, shape, first=first)
    z = noise.initial()
    assert torch.equal(z, noise.at(7).initial())
    assert torch.equal(z, BrownianPath(seed, shape, first=first).initial())
    assert torch.equal(z[-1:], WhiteNoise(seed, (1, *shape[1:]), first=first + shape[0] - 1).initial())
    assert not torch.equal(z, noise.normal(0))


def test_memory_stays_flat_over_many_nested_loops():
    noise = WhiteNoise(0, (4, 3))
    for step in range(50):
        for inner in range(3):
            noise.at(step).within().at(inner).normal()
            noise.at(step).normal(2)
    assert len(noise.normals._held) <= random.KEPT


def test_empty_batches_and_events():
    assert WhiteNoise(0, (0, 3)).normal().shape == (0, 3)
    assert WhiteNoise([], (0, 3)).normal().shape == (0, 3)
    assert WhiteNoise(0, (2, 0)).normal().shape == (2, 0)
    assert BrownianPath(0, (0, 3)).unit(at(0.2), at(0.1)).shape == (0, 3)


# -- the law ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", [0, 1, 2**62, 2**63 - 1])
@pytest.mark.parametrize("shape", [(60_000,), (30_000, 2), (20, 3, 32, 32)])
def test_standard_normal(seed, shape):
    z = WhiteNoise(seed, shape, dtype=F64).at(33).normal().flatten()
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-5
    n = z.numel()
    assert abs(z.mean()) * math.sqrt(n) < 5
    assert abs((z**2).mean() - 1) * math.sqrt(n / 2) < 5
    assert abs((z**3).mean()) * math.sqrt(n / 15) < 5
    assert abs((z**4).mean() - 3) * math.sqrt(n / 96) < 5


def test_per_sample_seeds_are_standard_normal():
    z = WhiteNoise(list(range(4000)), (4000, 3), dtype=F64).at(0).normal().flatten()
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-5


@pytest.mark.parametrize("event", [(), (2,), (70,)])
def test_independent_over_steps_uses_loops_samples_and_seeds(event):
    n = 24_000 // max(1, math.prod(event))
    noise = WhiteNoise(11, (n + 1, *event), dtype=F64)
    last = random.LABELS - 1
    draws = {
        "step 0": noise.at(0).normal(), "step 1": noise.at(1).normal(), "step 0, use 0": noise.at(0).normal(0),
        "step 0, use 2": noise.at(0).normal(2), "last of a key": noise.at(last).normal(), "next key": noise.at(last + 1).normal(),
        "loop in step 0": noise.at(0).within().normal(), "loop in step 1": noise.at(1).within().normal(),
        "step 1 of a loop": noise.at(0).within().at(1).normal(), "loop in a loop": noise.at(0).within().at(1).within().normal(),
        "initial": noise.initial(), "use 4": noise.at(0).normal(4), "loop's initial": noise.within().initial(),
        "another seed": WhiteNoise(12, (n + 1, *event), dtype=F64).normal(),
    }
    for (_, a), (_, b) in itertools.combinations(draws.items(), 2):
        assert abs(z_correlation(a, b)) < 5
        assert abs(z_correlation(a**2 - 1, b**2 - 1)) / 2 < 5
    for z in draws.values():
        assert abs(z_correlation(z[1:], z[:-1])) < 5
    flat = [set(draws[k].flatten().tolist()) for k in ("initial", "use 4", "step 0", "another seed")]
    assert all(len(a & b) < 0.01 * len(a) for a, b in itertools.combinations(flat, 2))         # nor the same numbers, shuffled


@given(st.lists(st.integers(-2**63, 2**63 - 1), min_size=1, max_size=5), st.integers(0, 2**100), st.integers(0, 300))
def test_a_stream_is_entered_anywhere(key, start, skip):
    words = random._Engine().words
    whole, other = words([(tuple(key), 0), ((*key, 0), 0)], start, skip + 5)
    assert (other[:5] != whole[:5]).all()
    assert (words([(tuple(key), 0)], start + skip, 5)[0] == whole[skip:]).all()          # back
    assert (random._Engine().words([(tuple(key), 0)], start + skip, 5)[0] == whole[skip:]).all()


def test_labels_drawn_for_a_run_are_those_drawn_alone_and_none_is_drawn_beyond_it(monkeypatch):
    drawn, words = [], random._engine.words
    monkeypatch.setattr(random._engine, "words", lambda streams, *span: drawn.extend(streams) or words(streams, *span))
    labels = [((use,), k) for k in range(50) for use in (0, 1)]
    source = WhiteNoise(3, (2, 3)).at(5).within()
    got = [z.clone() for z in source.sequence(labels)]
    assert len(drawn) == 100
    assert all(torch.equal(z, WhiteNoise(3, (2, 3)).at(5).within().at(k).normal(use)) for z, ((use,), k) in zip(got, labels))
    assert torch.equal(source.at(51).normal(0), WhiteNoise(3, (2, 3)).at(5).within().at(51).normal(0))       # beyond what is kept


def test_words_become_normals_by_box_and_muller():
    words = random._Engine().words([((3, 1), 0)], 0, 4 * random.BLOCK)[0].astype("<u8").view("<i4").astype(float).reshape(4, 2, random.BLOCK)
    r, theta = np.sqrt(-2 * np.log(np.abs(words[:, 0]) / 2**31)), np.pi * words[:, 1] / 2**31
    z = random._rows([((3, 1), 0)], 0, 8 * random.BLOCK).view(4, 2, random.BLOCK)
    assert np.allclose(z[:, 0], r * np.cos(theta), rtol=0, atol=5e-6)
    assert np.allclose(z[:, 1], r * np.sin(theta), rtol=0, atol=5e-6)


def test_the_rarest_words_are_finite_normals():
    extreme = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1], dtype="<u4")
    words = np.array([(int(t) << 32) | int(u) for u in extreme for t in extreme] + [0] * (random.BLOCK - 25), dtype="<u8")
    half = words.view("<i4").reshape(1, 2, random.BLOCK)                       # a block's first half are its u
    assert set(half[0].flatten().tolist()) >= {0, 1, -1, 2**31 - 1, -2**31}
    r = random._Engine().window([words], 1).r
    assert bool(torch.isfinite(r).all())
    assert float(r.max()) == pytest.approx(math.sqrt(-2 * math.log(2.0**-33)), rel=1e-6)
    assert float(r.min()) == 0


# -- the global state ---------------------------------------------------------------------------------------------

def test_an_explicit_seed_leaves_the_global_state_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), python_random.getstate()       # noqa: NPY002
    WhiteNoise(3, (5, 2)).at(4).normal()
    WhiteNoise([1, 2], (2, 2)).normal()
    BrownianPath(3, (5, 2)).unit(at(0.9), at(0.3))
    GeneratorNoise(torch.Generator().manual_seed(0), (5, 2)).normal()
    VPSDE().prior((4, 2), seed=1)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()                 # noqa: NPY002
    assert before[2] == python_random.getstate()


def test_no_seed_follows_torch_manual_seed():
    def draws():
        return [source(None, (3, 2)).normal() for _ in range(2)]
    torch.manual_seed(5)
    first = draws()
    torch.manual_seed(5)
    again = draws()
    torch.manual_seed(6)
    other = draws()
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_generator_source_is_the_generator():
    noise = source(torch.Generator().manual_seed(4), (3, 2), dtype=F64)
    generator = torch.Generator().manual_seed(4)
    for step in range(3):
        assert torch.equal(noise.at(step).normal(), torch.randn(3, 2, dtype=F64, generator=generator))


@pytest.mark.parametrize("seed, error", [(True, TypeError), (1.0, TypeError), ("1", TypeError), (-1, ValueError), (2**63, ValueError),
                                         ([1, 2], ValueError), ([1, 2, 3, 4], ValueError), ([1, -2, 3], ValueError),
                                         ([1, 2.0, 3], TypeError), (torch.tensor([0.5, 1, 2]), TypeError)])
def test_bad_seeds_are_refused_by_name(seed, error):
    for make in (lambda: canonical_seed(seed, 3), lambda: source(seed, (3, 2)), lambda: WhiteNoise(seed, (3, 2)),
                 lambda: BrownianPath(seed, (3, 2))):
        with pytest.raises(error, match="seed"):
            make()


def test_integers_of_any_kind_are_seeds():
    expected = WhiteNoise(5, (2, 3)).normal()
    for seed in (np.int64(5), torch.tensor(5)):
        assert torch.equal(source(seed, (2, 3)).normal(), expected)
    assert torch.equal(source((5, 6), (2, 3)).normal(), source(torch.tensor([5, 6]), (2, 3)).normal())


# -- white noise of an interval -----------------------------------------------------------------------------------

@pytest.mark.parametrize("make", [lambda n: WhiteNoise(3, (n,), dtype=F64), lambda n: BrownianPath(3, (n,), dtype=F64)])
@pytest.mark.parametrize("t, s", [(0.9, 0.4), (0.13, 0.77), (0.301, 0.3), (1.0, 0.0)])
def test_joint_law_of_increment_and_area(make, t, s):
    n, dt = 40_000, s - t
    noise = make(n)
    dw, area = noise.increment(at(t), at(s)), noise.area(at(t), at(s))
    h = abs(dt)
    assert abs(z_covariance(dw, dw, h, h, h)) < 5
    assert abs(z_covariance(dw, area, dt * h / 2, h, h**3 / 3)) < 5
    assert abs(z_covariance(area, area, h**3 / 3, h**3 / 3, h**3 / 3)) < 5
    assert stats.kstest((dw / math.sqrt(h)).numpy(), "norm").pvalue > 1e-5
    assert stats.kstest((area / math.sqrt(h**3 / 3)).numpy(), "norm").pvalue > 1e-5
    assert torch.allclose(noise.unit(at(t), at(s)) * math.sqrt(h), dw, rtol=1e-14, atol=0)


# -- the Brownian path --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("p", [0.03, 0.3, 0.5, 0.8])
def test_joint_law_inside_one_cell_of_the_bridge(p):
    """A path too coarse to split: (W, area) at p come from the bridge over the whole span at once."""
    n = 40_000
    path = BrownianPath(5, (n,), dtype=F64, resolution=1.0)
    w, a = path.increment(at(0.0), at(p)), path.area(at(0.0), at(p))
    rest, rest_area = path.increment(at(p), at(1.0)), path.area(at(p), at(1.0))
    for (x, vx), (y, vy), cov in [((w, p), (w, p), p), ((w, p), (a, p**3 / 3), p * p / 2), ((a, p**3 / 3), (a, p**3 / 3), p**3 / 3),
                                  ((w, p), (rest, 1 - p), 0), ((a, p**3 / 3), (rest, 1 - p), 0),
                                  ((a, p**3 / 3), (rest_area, (1 - p)**3 / 3), 0), ((w, p), (rest_area, (1 - p)**3 / 3), 0)]:
        assert abs(z_covariance(x, y, cov, vx, vy)) < 5


spans = st.lists(st.floats(0.0, 1.0), min_size=3, max_size=8, unique=True).map(sorted).filter(
    lambda t: min(b - a for a, b in itertools.pairwise(t)) > 1e-5)


@settings(max_examples=12)
@given(seeds, spans)
def test_refinement_sums_to_the_coarse_increment(seed, t):
    path = BrownianPath(seed, (3, 2), dtype=F64)
    for grid in (t, t[::-1]):
        fine = sum(path.increment(at(a), at(b)) for a, b in itertools.pairwise(grid))
        assert torch.allclose(fine, path.increment(at(grid[0]), at(grid[-1])), rtol=0, atol=1e-12)


@settings(max_examples=12)
@given(seeds, spans)
def test_increment_and_area_of_joined_intervals(seed, t):
    """A(r, t) = A(r, s) + A(s, t) + (t - s) W(r, s) (Chen), forward and backward."""
    path = BrownianPath(seed, (3,), dtype=F64)
    for r, s, u in (t[:3], t[2::-1], t[-3:]):
        joined = path.area(at(r), at(s)) + path.area(at(s), at(u)) + (u - s) * path.increment(at(r), at(s))
        assert torch.allclose(path.area(at(r), at(u)), joined, rtol=0, atol=1e-12)


@settings(max_examples=12)
@given(seeds, spans, st.randoms(use_true_random=False))
def test_order_of_asking_gives_the_same_path_bit_for_bit(seed, t, shuffle):
    path = BrownianPath(seed, (2, 2), dtype=F64)
    t = [*t, 0.5, 0.25, 0.75, 1.0, 0.0]                    # ends of cells too
    expected = {c: BrownianPath(seed, (2, 2), dtype=F64).value(c) for c in t}
    asked = t * 2
    shuffle.shuffle(asked)
    for c in asked:
        assert torch.equal(path.value(c), expected[c])


@settings(max_examples=12)
@given(seeds, shapes(5, 4), st.integers(0, 9000), st.floats(0.01, 1.0))
def test_path_rows_alone_and_in_a_batch(seed, shape, first, c):
    whole = BrownianPath(seed, shape, dtype=F64, first=first).value(c)
    i = shape[0] - 1
    assert torch.equal(BrownianPath(seed, (1, *shape[1:]), dtype=F64, first=first + i).value(c), whole[i:])
    own = list(range(10, 10 + shape[0]))
    whole = BrownianPath(own, shape, dtype=F64).value(c)
    assert torch.equal(BrownianPath(own[i:], (1, *shape[1:]), dtype=F64).value(c), whole[i:])


def test_path_starts_at_zero_and_has_independent_gaussian_increments():
    n, grid = 30_000, [0.0, 1e-5, 0.01, 0.11, 0.25, 0.2503, 0.5, 0.61803, 0.9, 1.0]
    path = BrownianPath(8, (n,), dtype=F64)
    assert torch.equal(path.value(0.0), torch.zeros(n, dtype=F64))
    units = [path.unit(at(a), at(b)) for a, b in itertools.pairwise(grid)]
    areas = [path.area(at(a), at(b)) / (b - a)**1.5 * math.sqrt(3) for a, b in itertools.pairwise(grid)]
    for u in units:
        assert stats.kstest(u.numpy(), "norm").pvalue > 1e-5
        assert abs((u**2).mean() - 1) * math.sqrt(n / 2) < 5
    for (u, a), (v, b) in itertools.combinations(zip(units, areas), 2):
        assert max(abs(z_correlation(p, q)) for p in (u, a) for q in (v, b)) < 5
        assert abs(z_correlation(u**2 - 1, v**2 - 1)) / 2 < 5
    white = path.at(0).normal()
    assert max(abs(z_correlation(white, u)) for u in units) < 5


def test_path_on_a_shifted_span_and_many_seeds():
    n = 1500
    path = BrownianPath(list(range(n)), (n,), dtype=F64, span=(-2.0, 6.0))
    assert torch.equal(path.value(-2.0), torch.zeros(n, dtype=F64))
    for c in (-1.99, 0.0, 3.7, 6.0):
        assert stats.kstest((path.value(c) / math.sqrt(c + 2)).numpy(), "norm").pvalue > 1e-5


@pytest.mark.parametrize("own", [False, True])
@settings(max_examples=12)
@given(seeds, st.floats(1e-6, 3.0), st.integers(0, 200))
def test_the_weights_on_the_way_up_are_the_bridges_on_the_way_down(own, seed, c, first):
    seed = [seed, 5, 6] if own else seed
    path = BrownianPath(seed, (3, 2), dtype=F64, span=(0.0, 3.0), first=first)
    normals, (cells, end) = path.white.normals, path._descend(c)
    pairs = [[x.double().reshape(3, 2) for x in normals.pair((-1, 0, cell.node))] for cell in cells]
    zero, (z, y) = torch.zeros(3, 2, dtype=F64), pairs[0]
    low, high = (zero, zero), (math.sqrt(3) * z, 3**1.5 * (z / 2 + y / math.sqrt(12)))
    middle = None
    for (_, h, p, side), (z, y) in zip(cells[1:], pairs[1:]):
        (w_w, w_a), (a_w, a_a), (lww, law, laa) = random._bridge(p)
        dw, da = high[0] - low[0], high[1] - low[1] - h * low[0]
        middle = (low[0] + w_w * dw + w_a / h * da + math.sqrt(h) * lww * z,
                  low[1] + p * h * low[0] + a_w * h * dw + a_a * da + h**1.5 * (law * z + laa * y))
        low, high = (low, middle) if side == 1 else (middle, high)
    w, a = middle if end == 2 else (low, high)[end]
    assert torch.allclose(path._at(c, "w").double(), w, rtol=0, atol=3e-6)
    assert torch.allclose(path._at(c, "a"), a, rtol=0, atol=3e-6)


@settings(max_examples=12)
@given(seeds, spans)
def test_a_path_over_a_grid_keeps_it_and_gives_the_same_bits(seed, t):
    free = BrownianPath(seed, (4, 2))
    path, calls = free.over([at(c) for c in t]), []
    combine = path.white.normals.combine
    path.white.normals.combine = lambda *args: calls.append(args) or combine(*args)
    for _ in range(2):
        for a, b in itertools.pairwise(t[::-1]):
            other = BrownianPath(seed, (4, 2))
            assert torch.equal(path.at(3).area(at(a), at(b)), other.area(at(a), at(b)))         # both are asked for, in another order
            assert torch.equal(path.within().unit(at(a), at(b)), other.unit(at(a), at(b)))
            assert torch.equal(path.unit(at(a), at(b)), BrownianPath(seed, (4, 2)).unit(at(a), at(b)))
    assert len(calls) == len(t)
    assert torch.equal(path.value(1 / 3), BrownianPath(seed, (4, 2)).value(1 / 3))              # others are drawn as ever
    assert len(path._memo.recent) == 1
    assert len(path._memo.known) == len(t)


@given(st.floats(1e-4, 1 - 1e-4))
def test_bridge_is_gaussian_conditioning(p):
    ww = lambda s, t: min(s, t)
    wa = lambda s, t: s * t - s * s / 2 if s <= t else t * t / 2                    # Cov(W_s, A_t)
    aa = lambda s, t: min(s, t)**2 * max(s, t) / 2 - min(s, t)**3 / 6               # Cov(A_s, A_t)
    block = lambda s, t: np.array([[ww(s, t), wa(s, t)], [wa(t, s), aa(s, t)]])
    gain = block(p, 1.0) @ np.linalg.inv(block(1.0, 1.0))
    law = block(p, p) - gain @ block(p, 1.0).T
    w, a, (lww, law_, laa) = random._bridge(p)
    factor = np.array([[lww, 0.0], [law_, laa]])
    assert np.allclose([w[:2], a[:2]], gain, rtol=0, atol=1e-13)
    assert np.allclose(factor @ factor.T, law, rtol=0, atol=1e-14)
    assert np.allclose(np.diag(factor @ factor.T), np.diag(law), rtol=1e-3, atol=1e-15)


@pytest.mark.parametrize("eta", [0.4, 1.0, 1.7])
def test_quadratic_variation_clock_joins_exponential_steps(eta):
    """The noise sigma_s sqrt(1 - e^{-2 eta^2 h}) z of one long x0-form step is the fine steps' noise, carried along."""
    sde = VPSDE()
    clock = quadratic_variation(eta)
    grid = [sde.at(t) for t in (1.0, 0.83, 0.5, 0.31, 0.1, 0.01)]
    path = BrownianPath(2, (5, 2), dtype=F64, span=(clock(grid[0]), clock(grid[-1])), clock=clock)

    def noise(t, s):
        return s.sigma * math.sqrt(-math.expm1(-2 * eta**2 * (s.lam - t.lam))) * path.unit(t, s)

    carried = torch.zeros(5, 2, dtype=F64)
    for t, s in itertools.pairwise(grid):
        carried = s.sigma / t.sigma * math.exp(-eta**2 * (s.lam - t.lam)) * carried + noise(t, s)
    assert torch.allclose(carried, noise(grid[0], grid[-1]), rtol=1e-12, atol=1e-13)
    with pytest.raises(ValueError, match="area"):
        path.area(grid[0], grid[1])
    with pytest.raises(ValueError, match="clock value"):
        path.unit(grid[0], sde.at(0.0))


@pytest.mark.parametrize("t", [-1e-9, 1.0 + 1e-9, math.nan, math.inf])
def test_times_outside_the_span_are_refused(t):
    path = BrownianPath(0, (2, 2))
    for ask in (path.unit, path.increment, path.area):
        with pytest.raises(ValueError, match="span"):
            ask(at(0.5), at(t))


@pytest.mark.parametrize("span", [(0.0, 0.0), (1.0, 0.0), (0.0, math.inf), (math.nan, 1.0)])
def test_bad_spans_are_refused(span):
    with pytest.raises(ValueError, match="span"):
        BrownianPath(0, (2, 2), span=span)


@settings(max_examples=15)
@given(seeds, st.floats(0.001, 1.0))
def test_the_path_is_continuous(seed, c):
    """Over a cell of 1e-7 the path moves by some sqrt(1e-7)."""
    path = BrownianPath(seed, (64,), dtype=F64)
    near = max(0.0, c - 1e-7)
    assert float((path.value(c) - path.value(near)).abs().max()) < 8 * math.sqrt(1e-7) * 1.5


@pytest.mark.gpu
def test_noise_on_a_gpu_is_pure_there(cuda):
    n = random.TILE // 3 + 5
    whole = WhiteNoise(3, (n, 7), device=cuda).at(7).normal()
    assert whole.device.type == "cuda"
    for first, rows in ((20, 1), (random.TILE // 7 - 1, 3), (n - 2, 2)):
        assert torch.equal(WhiteNoise(3, (rows, 7), device=cuda, first=first).at(7).normal(), whole[first:first + rows])
    own = WhiteNoise([5, 6, 7], (3, 2), device=cuda).at(40).normal()
    assert torch.equal(WhiteNoise([6], (1, 2), device=cuda).at(40).normal(), own[1:2])
    assert stats.kstest(WhiteNoise(3, (60_000,), device=cuda).normal().cpu().double().numpy(), "norm").pvalue > 1e-5
    path = BrownianPath(3, (500, 2), dtype=F64, device=cuda)
    fine = path.increment(at(1.0), at(0.3)) + path.increment(at(0.3), at(0.1))
    assert torch.allclose(fine, path.increment(at(1.0), at(0.1)), rtol=0, atol=1e-12)
    assert torch.equal(BrownianPath(3, (2, 2), dtype=F64, device=cuda, first=100).value(0.3), path.value(0.3)[100:102])
