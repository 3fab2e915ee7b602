"""Several processes: they draw the file that one draws, they train the network that one trains, and one that dies leaves nothing torn.

Two processes over gloo, started by torchrun with this file as their program. Starting them is the costly part: the fast tests look at
what one start has done."""
import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

import sdediff
from sdediff import VPSDE, nets, training
from sdediff.ranks import ALONE, RankError, Ranks, job, leave

SDE = VPSDE()
CALL = {"shape": (50, 2), "method": "ddpm", "steps": 4, "seed": 3, "chunk": 8}
DATA = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def score():
    net = nets.MLP(2, 64, 1)
    torch.nn.init.normal_(net.leave.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return sdediff.from_network(net, "eps")


class Fails:
    """The score; at its k-th call it raises, or ends the process. Its fingerprint is its class, whatever k."""

    __slots__ = ("calls", "fails", "hard", "score")
    __module__ = "test_ranks"                                                       # also where this file is the program

    def __init__(self, fails=None, hard=False):
        self.score, self.calls, self.fails, self.hard = score(), 0, fails, hard

    def __call__(self, x, level):
        self.calls += 1
        if self.calls == self.fails:
            if self.hard:
                os._exit(7)
            raise sdediff.NetworkError("on purpose")
        return self.score(x, level)


class Net(nets.MLP):
    """With a parameter that the rows of rank 0 do not use, and one that none use: a gradient of zero decays a weight, none does not."""

    def __init__(self, moved=0):
        super().__init__(2, 16, 1)
        self.sometimes, self.never = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
        self.double()
        self.enter.weight.data += moved

    def forward(self, x, c, y=None):
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 1
        return super().forward(x, c, None) + (0 * self.sometimes * x if rank else 0)


def train(low_discrepancy=True, moved=0, batch=33, group=None, **more):
    config = training.TrainingConfig(steps=12, batch=batch, warmup=2, lr=1e-2, weight_decay=0.1, checkpoint_every=5, ema=0.5,
                                     low_discrepancy=low_discrepancy)
    return training.train(sdediff.from_network(Net(moved), "eps"), SDE, DATA, config, progress=False, group=group, **more)


def flat(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()]).tolist()


def work(out):
    """The program of a process."""
    torch.set_num_threads(1)
    said = {}

    def attempt(name, do):
        try:
            said[name] = do()
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"

    with job() as (ranks, _):
        rank, group = ranks.rank, ranks.group
        draw = lambda name, score, **more: sdediff.sample(SDE, score, **{**CALL, **more}, out=out / name, group=group).tolist()
        attempt("drawn", lambda: draw("x.npy", score()))
        torch.manual_seed(rank)
        attempt("fresh", lambda: draw("fresh.npy", score(), seed=None))
        attempt("chunks", lambda: [x.tolist() for x in sdediff.sample_chunks(SDE, score(), **CALL, group=group)])
        attempt("exists", lambda: draw("x.npy", score()))
        attempt("other", lambda: draw("other.npy", score(), steps=4 + rank))
        attempt("network", lambda: draw("late.npy", Fails(6 if rank else None)))
        counted = Fails()
        attempt("again", lambda: draw("late.npy", counted))
        said["calls"] = counted.calls
        for spread in (True, False):
            trained = train(spread, moved=rank, group=group, checkpoint=out / f"{spread}.safetensors")      # all take rank 0's weights
            said[f"trained {spread}"] = [trained.losses.tolist(), flat(trained.network), flat(trained.ema)]
        attempt("batch", lambda: train(batch=1, group=group))
        attempt("config", lambda: train(batch=33 + rank, group=group))
        said["shared"] = ranks.share({"rank": rank})
        attempt("first", lambda: ranks.first(lambda: {"rank": rank}))
    (out / f"{rank}.json").write_text(json.dumps(said))


def torchrun(*argv, fails=False):
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, argv)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (done.returncode != 0) == fails, done.stderr
    return done


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder, and what the ranks said."""
    out = tmp_path_factory.mktemp("two")
    torchrun(__file__, out)
    return out, [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_draw_the_file_of_one(two):
    one = sdediff.sample(SDE, score(), **CALL)
    assert torch.equal(torch.from_numpy(np.load(two[0] / "x.npy")), one)
    assert [torch.equal(torch.tensor(said["drawn"]), one) for said in two[1]] == [True, True]
    torch.manual_seed(0)                                                            # rank 0's
    assert torch.equal(torch.from_numpy(np.load(two[0] / "fresh.npy")), sdediff.sample(SDE, score(), **{**CALL, "seed": None}))


def test_chunks_of_a_rank(two):
    whole = [x.tolist() for x in sdediff.sample_chunks(SDE, score(), **CALL)]
    assert [said["chunks"] for said in two[1]] == [whole[::2], whole[1::2]]


def test_one_rank_fails_and_all_end_with_an_error(two):
    first, second = two[1]
    assert "FileExistsError" in first["exists"] and second["exists"] == "RankError: rank 0 of 2 failed; its own message says why."
    assert first["other"].startswith("RankError: rank 1 of 2 failed") and second["other"].startswith("ValueError: times of rank 1 is '5 steps")
    assert first["network"].startswith("RankError: rank 1 of 2 failed") and second["network"].startswith("NetworkError: on purpose")
    assert "chunk of samples 24 to 31" in second["network"]


def test_what_was_drawn_before_a_failure_is_not_drawn_again(two):
    first, second = two[1]
    assert first["again"] == second["again"] == sdediff.sample(SDE, score(), **CALL).tolist()
    assert first["calls"] + second["calls"] == 4 * (7 - 3)
    assert {p.name for p in two[0].iterdir()} == {"x.npy", "fresh.npy", "late.npy", "0.json", "1.json",
                                              *(f"{v}{kept}.safetensors" for v in (True, False) for kept in ("", ".previous"))}


@pytest.mark.parametrize("low_discrepancy", [True, False])
def test_two_processes_train_the_network_of_one(two, low_discrepancy):
    one, (first, second) = train(low_discrepancy), (said[f"trained {low_discrepancy}"] for said in two[1])
    assert first == second
    for theirs, ours in zip(first, (one.losses.tolist(), flat(one.network), flat(one.ema))):
        assert np.allclose(theirs, ours, rtol=1e-4, atol=1e-9)                      # losses are kept in float32
    assert np.allclose(first[1], flat(one.network), rtol=1e-9, atol=1e-12)
    assert 0 < flat(one.network)[0] < 1 == flat(one.network)[2]
    saved = training.load_checkpoint(two[0] / f"{low_discrepancy}.safetensors")
    assert saved.step == 12 and saved.parts["network"]["sometimes"].tolist() == first[1][:2]


def test_runs_that_differ_are_refused(two):
    first, second = two[1]
    assert first["batch"] == second["batch"] == "ValueError: batch=1: 2 processes share it; expected batch >= 2."
    assert second["config"].startswith("ValueError: training of rank 1 is") and first["config"].startswith("RankError: rank 1 of 2 failed")
    assert first["shared"] == second["shared"] == first["first"] == second["first"] == {"rank": 0}


def test_alone():
    with job() as (ranks, device):
        assert ranks == ALONE == Ranks.of(None) and device == torch.device("cpu")
    assert ALONE.share([1]) == ALONE.first(lambda: [1]) == [1]
    with pytest.raises(KeyError):
        ALONE.first(lambda: {}[0])
    with pytest.raises(TypeError, match="group='all'"):
        Ranks.of("all")
    assert issubclass(RankError, RuntimeError)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="finds 0 GPUs"), job("cuda"):
            pass


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job_and_another_goes_on(tmp_path):
    """Without torchrun, which would stop the others before they speak."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    env = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen([sys.executable, __file__, str(tmp_path), "dies"], stderr=subprocess.PIPE, text=True,
                             env={**env, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    said = [process.communicate(timeout=200)[1] for process in both]
    assert [process.returncode for process in both] == [1, 7], said
    assert "RankError: rank 0 of 2 waited for one that has ended, or is silent" in said[0]
    assert {p.name for p in tmp_path.iterdir()} == {"x.npy.partial", "x.npy.partial.json"}
    counted = Fails()
    assert torch.equal(sdediff.sample(SDE, counted, **CALL, out=tmp_path / "x.npy"), sdediff.sample(SDE, score(), **CALL))
    assert counted.calls < 4 * 7 and [p.name for p in tmp_path.iterdir()] == ["x.npy"]


def commands(one, out):
    """Command lines, as a torchrun job gives them to each process: train, sample, and a refusal."""
    from sdediff.cli import main
    tiny = ["--training.steps", "40", "--training.batch", "65", "--network.width", "16", "--quiet"]
    draw = ["sample", str(one), "-n", "300", "--chunk", "64", "--steps", "4", "--quiet", "--out", f"{out}.npy"]
    return [main(["train", *tiny, "--out", str(out)]), main(draw), main(draw)]


@pytest.mark.slow
def test_the_command_line(tmp_path, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    assert commands(one, one) == [0, 0, 2]
    alone = capsys.readouterr()
    both = torchrun(__file__, tmp_path, "commands")
    assert both.stdout.replace("two", "one") == alone.out                           # the loss to the digits shown; and said once
    assert both.stderr.count("--overwrite replaces it") == 1
    configs = [(out / "config.yaml").read_text().split("\n")[1:] for out in (one, two)]
    assert configs[0] == configs[1]
    losses = [training.load_checkpoint(out / "checkpoint.safetensors").losses for out in (one, two)]
    assert torch.allclose(*losses, rtol=1e-3)
    assert (tmp_path / "one.npy").read_bytes() == (tmp_path / "two.npy").read_bytes()


if __name__ == "__main__":
    here = pathlib.Path(sys.argv[1])
    if sys.argv[2:] == ["dies"]:
        with job() as (processes, _):
            sdediff.sample(SDE, Fails(10 if processes.rank else None, hard=True), **CALL, out=here / "x.npy", group=processes.group)
    elif sys.argv[2:] == ["commands"]:
        with job():
            assert commands(here / "one", here / "two") == [0, 0, 1 if int(os.environ["RANK"]) else 2]     # one refuses, the other ends
    else:
        work(here)
    leave()
