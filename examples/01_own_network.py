r"""A network of your own, in five lines: any module net(x, c) that was trained to see the noise.

The network below is plain PyTorch, trained here for the two moons with a loss of four lines, as it may have been anywhere; sdediff is told
what it predicts and what it is conditioned on, and every solver takes it. Expect sliced W2 of 0.05 in 20 calls of a second-order method and
in 200 of a stochastic one, 0.09 in 20 of ddim; two exact sets of this size are 0.02 apart. Half a minute.
"""
import torch

import sdediff
from sdediff import metrics

torch.manual_seed(0)
torch.set_num_threads(1)


class Net(torch.nn.Module):
    """eps(x, t), with sines of t for features."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(10, 128), torch.nn.SiLU(), torch.nn.Linear(128, 128), torch.nn.SiLU(),
                                          torch.nn.Linear(128, 128), torch.nn.SiLU(), torch.nn.Linear(128, 2))

    def forward(self, x, t):
        angle = t[:, None] * torch.tensor([1.0, 3.0, 9.0, 27.0])
        return self.layers(torch.cat([x, angle.sin(), angle.cos()], 1))


sde, data = sdediff.VPSDE(), sdediff.targets.toy("two-moons")
net = Net()
optimizer = torch.optim.Adam(net.parameters(), 2e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3000)
points = data.sample(20_000, seed=0).float()
for _ in range(3000):
    x0, t = points[torch.randint(len(points), (512,))], 1e-3 + (1 - 1e-3) * torch.rand(512)
    mean, std = sde.marginal(x0, t)
    eps = torch.randn_like(x0)
    loss = (net(mean + std * eps, t) - eps).square().mean()
    optimizer.zero_grad(), loss.backward(), optimizer.step(), schedule.step()

score = sdediff.from_network(net, predicts="eps", time_input="t")
exact = data.sample(5000, seed=1).float()
for method in ("ddim", "heun", "dpm++2m", "ddpm", "euler-maruyama"):
    x = sdediff.sample(sde, score, shape=(5000, 2), method=method, nfe=20 if method in ("ddim", "heun", "dpm++2m") else 200, seed=0)
    print(f"{method:<16}{metrics.sliced_w2(x, exact)}")
print(f"{'exact':<16}{metrics.sliced_w2(data.sample(5000, seed=2).float(), exact)}")
