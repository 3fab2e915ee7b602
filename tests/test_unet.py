"""The U-Net: shapes of any kind, conditions that reach every output, and the same weights from the same seed."""
import itertools

import pytest
import torch

import sdediff
from sdediff.nets import UNet, _Attention, build
from sdediff.training import TrainingConfig, train

KINDS = {"clips": ((3, 1, 8, 8), {"patch": 2, "attention": (2,), "classes": 2, "context": 1, "embedding": 3}), "grey": ((1, 28, 28), {"attention": (7,), "classes": 10}), "odd": ((3, 7, 5), {"embedding": 4}), "one": ((2, 4, 4), {"multipliers": (1,)}),
         "patches": ((3, 12, 8), {"patch": 4, "attention": (2,), "classes": 2}),
         "deep": ((1, 16, 16), {"multipliers": (1, 2, 2, 4), "blocks": 2, "attention": (2, 4), "classes": 3, "embedding": 5, "context": 2})}


def filled(event, **options):
    """A network whose last layers are not zero, so that everything reaches the output."""
    net, g = UNet(event, 8, **options), torch.Generator().manual_seed(0)
    for p in net.parameters():
        if not bool(p.any()):
            torch.nn.init.normal_(p, std=0.1, generator=g)
    return net


@pytest.mark.parametrize("kind", KINDS)
def test_it_returns_its_input_s_shape_and_nothing_before_it_is_trained(kind):
    event, options = KINDS[kind]
    net, x = UNet(event, 8, **options), torch.randn(3, *event)
    assert torch.equal(net(x, torch.tensor([0.1, 2.0, -5.0])), torch.zeros_like(x))
    assert filled(event, **options).double()(x.double(), torch.zeros(3)).dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_made_again_from_its_config(kind):
    event, options = KINDS[kind]
    net = UNet(event, 8, seed=3, **options)
    again, other = build(net.config), UNet(event, 8, seed=4, **options)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


def test_level_label_and_embedding_reach_every_pixel_of_their_own_sample():
    event, options = KINDS["deep"]
    net, x = filled(event, **options), torch.randn(2, *event, generator=torch.Generator().manual_seed(1))
    c, y, e, z = torch.tensor([0.1, 0.1]), torch.tensor([0, 1]), torch.randn(2, 5), torch.randn(2, 2, 16, 16)
    base = net(x, c, y, e, z)
    for changed in (net(x, torch.tensor([0.1, 0.3]), y, e, z), net(x, c, torch.tensor([0, 2]), e, z),
                    net(x, c, y, e + torch.tensor([[0.0], [1.0]]), z), net(x, c, y, e, torch.stack([z[0], z[1] + 1]))):
        assert torch.allclose(changed[0], base[0], atol=1e-6)
        assert float(((changed[1] - base[1]).abs() > 1e-7).float().mean()) > 0.99
    assert torch.equal(net(x, c, y), net(x, c, y, net.absent.expand(2, -1), torch.zeros_like(z)))
    assert torch.equal(net(x, c), net(x, c, 3))                 # the label "none"


@pytest.mark.parametrize("frames", [None, 3])
def test_attention_is_a_softmax_over_all_pixels(frames):
    """By hand, head by head: h + W_o sum_j softmax_j(q_i . k_j / sqrt(32)) v_j, over the pixels of a picture or of all frames of a clip."""
    net = _Attention(64, torch.Generator().manual_seed(0), frames).double()
    torch.nn.init.normal_(net.leave.weight, generator=torch.Generator().manual_seed(1))
    h = torch.randn(2 * (frames or 1), 64, 3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    together = lambda v: torch.stack([clip.transpose(0, 1).flatten(1) for clip in v.split(frames or 1)])     # (2, C, pixels of a clip)
    q, k, v = (together(part) for part in net.enter(net.norm(h)).chunk(3, 1))
    heads = []
    for i in range(0, 64, 32):
        weights = (q[:, i:i + 32].transpose(1, 2) @ k[:, i:i + 32] / 32**0.5).softmax(2)        # (2, pixel, pixel)
        heads.append(v[:, i:i + 32] @ weights.transpose(1, 2))
    mixed = torch.cat(heads, 1).unflatten(2, (frames or 1, 3, 5)).transpose(1, 2).flatten(0, 1)
    assert torch.allclose(net(h, torch.empty(0)), h + net.leave(mixed), atol=1e-12)


def test_a_block_of_clips_sees_the_frames_before_and_after():
    """By hand: the convolutions of frame k read channels 0..C/4 of frame k - 1, C/4..C/2 of frame k + 1 and the others of frame k."""
    net = filled((3, 1, 8, 8)).down[0][0]
    h = torch.randn(2 * 3, 8, 4, 4, generator=torch.Generator().manual_seed(2))
    clips, seen = h.view(2, 3, 8, 4, 4), torch.zeros(2, 3, 8, 4, 4)
    for b, k in itertools.product(range(2), range(3)):
        seen[b, k] = clips[b, k]
        seen[b, k, 0:2] = clips[b, k - 1, 0:2] if k > 0 else 0
        seen[b, k, 2:4] = clips[b, k + 1, 2:4] if k < 2 else 0
    assert torch.equal(net.neighbours(h), seen.flatten(0, 1))
    assert torch.equal(filled((1, 8, 8)).down[0][0].neighbours(h), h)                       # an image has none


def test_a_frame_reaches_every_other_frame_of_its_clip_alone():
    event, options = KINDS["clips"]
    net, x = filled(event, **options), torch.randn(2, *event, generator=torch.Generator().manual_seed(1))
    c, more = torch.tensor([0.1, 0.1]), torch.zeros_like(x)
    more[1, 0] = 1.0
    for changed in (net(x + more, c), net(x, c, context=more)):
        assert torch.allclose(changed[0], net(x, c)[0], atol=1e-6)
        assert float(((changed[1] - net(x, c)[1]).abs() > 1e-7).float().mean()) > 0.99


def test_a_run_of_it_learns_and_samples():
    """One picture, so that the best loss is that of a point mass and samples are the picture."""
    picture = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    score = sdediff.from_network(UNet((1, 8, 8), 16, (1, 2), seed=0), "v", time_input="lam")
    trained = train(score, sdediff.VPSDE(), picture, TrainingConfig(steps=100, batch=16, lr=3e-3, warmup=10, weighting="v"), progress=False)
    assert float(trained.losses[-20:].mean()) < 0.1 * float(trained.losses[:5].mean())
    x = sdediff.sample(sdediff.VPSDE(), trained.score, shape=(8, 1, 8, 8), method="dpm++2m", steps=20, seed=0)
    assert float((x - picture).square().mean().sqrt()) < 0.3 * float(picture.square().mean().sqrt())


def test_another_library_s_unet_through_the_same_adapter():
    """diffusers' network, by class, sampled here and by its own scheduler: one chain, one answer; every other method takes it too."""
    from diffusers import DDIMScheduler, UNet2DModel
    torch.manual_seed(0)
    net = UNet2DModel(8, 2, 2, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, num_class_embeds=3, attention_head_dim=8,
                      down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D")).double().eval()
    betas = torch.linspace(1e-4, 0.02, 50, dtype=torch.float64)
    sde, y = sdediff.VPSDE.from_betas(betas), torch.tensor([2, 0, 1])
    score = sdediff.from_network(lambda x, c, y: net(x, c, class_labels=y).sample, "eps", time_input="index")
    start = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    x = sdediff.sample(sde, score, x_init=start, method="ddim", steps=50, conditions={"y": y})
    theirs, scheduler = start, DDIMScheduler(50, trained_betas=betas.numpy(), clip_sample=False)
    scheduler.set_timesteps(50)
    with torch.no_grad():
        for t in scheduler.timesteps:
            theirs = scheduler.step(net(theirs, t, class_labels=y).sample, t, theirs).prev_sample
    assert float((x - theirs).abs().max()) < 1e-5           # the scheduler's table of abar is of single precision
    for method in ("dpm++2m", "sa-solver", "heun"):
        assert sdediff.sample(sde, score, x_init=start, method=method, nfe=6, seed=0, conditions={"y": y}).isfinite().all()


@pytest.mark.parametrize(("make", "said"), [
    (lambda: UNet((28, 28)), r"event=\(28, 28\)"), (lambda: UNet((2, 8, 1, 28, 28)), r"event=\(2, 8"), (lambda: UNet((1, 8, 8), 12), "width=12"), (lambda: UNet((1, 8, 8), attention=(3,)), "attention="),
    (lambda: UNet((1, 8, 8), multipliers=()), "multipliers="), (lambda: UNet((1, 8, 6), patch=4), "patch=4"), (lambda: UNet((1, 8, 8), 8)(torch.zeros(2, 1, 8, 9), torch.zeros(2)), "x.shape="),
    (lambda: UNet((1, 8, 8), 8)(torch.zeros(2, 1, 8, 8), torch.zeros(2), y=1), "y was given"),
    (lambda: UNet((1, 8, 8), 8)(torch.zeros(2, 1, 8, 8), torch.zeros(2), e=torch.zeros(2, 3)), "e was given"),
    (lambda: UNet((1, 8, 8), 8, embedding=3)(torch.zeros(2, 1, 8, 8), torch.zeros(2), e=torch.zeros(2, 4)), "e.shape="),
    (lambda: UNet((1, 8, 8), 8)(torch.zeros(2, 1, 8, 8), torch.zeros(2), context=torch.zeros(2, 1, 8, 8)), "context was given"),
    (lambda: UNet((1, 8, 8), 8, context=1)(torch.zeros(2, 1, 8, 8), torch.zeros(2), context=torch.zeros(1, 1, 8, 8)), "context.shape="),
    (lambda: UNet((1, 8, 8), 8, classes=3)(torch.zeros(2, 1, 8, 8), torch.zeros(2), y=4), "y=4")])
def test_wrong_arguments_are_refused_by_name(make, said):
    with pytest.raises(ValueError, match=said):
        make()
