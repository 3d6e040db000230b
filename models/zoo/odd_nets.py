"""Small PyTorch nets that use their weights or move their data in less common ways."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.torch_export import Sample, net
from models.zoo.torch_nets import BATCH, cbr, head

Run = Callable[..., Any]
ALL = ("legacy17d", "dynamo18d")


class Of(nn.Module):
    """Layers and parameters by name, and a function that runs them."""

    def __init__(self, run: Run, **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            weight = isinstance(part, Tensor) and not isinstance(part, nn.Buffer)
            setattr(self, name, nn.Parameter(part) if weight else part)

    def forward(self, x: Tensor, y: Tensor | None = None, z: Tensor | None = None) -> Any:
        given = [t for t in (x, y, z) if t is not None]
        return self.run(self, *given)


def w(*shape: int) -> Tensor:
    return torch.randn(*shape) * 0.2


def add(name: str, make: Callable[[], nn.Module], *shapes: tuple[int, ...], high: int = 0,
        by: tuple[str, ...] = ()) -> None:  # fmt: skip
    """Register a net; high: the inputs are whole numbers below it."""

    def sample() -> Sample:
        values = [torch.randint(0, high, s) if high else torch.randn(*s) for s in shapes]
        inputs = dict(zip("xyz", values, strict=False))
        return Sample(make(), inputs, dict.fromkeys(inputs, BATCH))

    net(*by, name=name)(sample)


IMAGE, TOKENS, ROWS, WAVE = (2, 3, 32, 32), (2, 9, 16), (2, 16), (2, 4, 64)


def mlp(*widths: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o), act()]
    return nn.Sequential(*layers[:-1])


# One line of mathematics a net.
# fmt: off
# --- weights put to uncommon use

add("tied_autoencoder", lambda: Of(lambda s, x: F.linear(F.relu(x @ s.w + s.b), s.w, s.c),
    w=w(16, 24), b=w(24), c=w(16)), ROWS)
add("weight_shared_steps", lambda: Of(lambda s, x: s.out(s.step(s.step(s.step(s.stem(x))))),
    stem=nn.Linear(16, 24), step=mlp(24, 32, 24), out=nn.Linear(24, 5)), ROWS)
add("bilinear", lambda: Of(lambda s, x, y: s.out(F.relu(s.bi(s.a(x), s.b(y)))), a=nn.Linear(16, 12),
    b=nn.Linear(16, 10), bi=nn.Bilinear(12, 10, 14), out=nn.Linear(14, 5)), ROWS, ROWS)
add("low_rank", lambda: Of(lambda s, x: s.out(F.relu(x @ s.u @ s.v)), u=w(16, 6), v=w(6, 24),
    out=nn.Linear(24, 5)), ROWS)
add("cosine_classifier", lambda: Of(lambda s, x: 10 * F.linear(F.normalize(s.body(x)),
    F.normalize(s.w)), body=mlp(16, 24, 20), w=w(5, 20)), ROWS)
add("hyper_linear", lambda: Of(lambda s, x, y: torch.einsum("bi,bio->bo", F.relu(s.a(x)),
    s.hyper(y).view(-1, 12, 6)), a=nn.Linear(16, 12), hyper=mlp(16, 20, 72)), ROWS, ROWS)
add("lora", lambda: Of(lambda s, x: s.out(F.gelu(s.base(x) + 0.5 * (x @ s.a) @ s.b)),
    base=nn.Linear(16, 24), a=w(16, 4), b=w(4, 24), out=nn.Linear(24, 5)), ROWS)
add("siren", lambda: Of(lambda s, x: s.out(torch.sin(s.b(torch.sin(30 * s.a(x))))),
    a=nn.Linear(16, 24), b=nn.Linear(24, 20), out=nn.Linear(20, 3)), ROWS)
add("radial_basis", lambda: Of(lambda s, x: s.out(torch.exp(
    -((x[:, None] - s.centres) ** 2).sum(-1))), centres=w(20, 16), out=nn.Linear(20, 5)), ROWS)
add("kan", lambda: Of(lambda s, x: s.out(torch.einsum("bik,iko->bo", torch.exp(-(
    (s.a(x)[..., None] - s.grid) ** 2)), s.w)), a=nn.Linear(16, 12), grid=torch.linspace(-1, 1, 6),
    w=w(12, 6, 14), out=nn.Linear(14, 5)), ROWS)
add("chebyshev_kan", lambda: Of(lambda s, x: s.out(torch.einsum("bik,iok->bo", torch.cos(
    torch.acos(torch.tanh(s.a(x)) * 0.99)[..., None] * s.k), s.w)), a=nn.Linear(16, 12),
    k=torch.arange(5.0), w=w(12, 14, 5), out=nn.Linear(14, 5)), ROWS)
add("random_features", lambda: Of(lambda s, x: s.out(torch.cat([torch.cos(s.a(x) @ s.w),
    torch.sin(s.a(x) @ s.w)], -1)), a=nn.Linear(16, 8), w=w(8, 16), out=nn.Linear(32, 5)), ROWS)
add("nerf", lambda: Of(lambda s, x: s.out(F.relu(s.b(torch.cat([F.relu(s.a(p := torch.cat(
    [f(x * 2.0**k) for k in range(4) for f in (torch.sin, torch.cos)], -1))), p], -1)))),
    a=nn.Linear(24, 20), b=nn.Linear(44, 16), out=nn.Linear(16, 4)), (2, 11, 3))
add("highway", lambda: Of(lambda s, x: s.out((t := torch.sigmoid(s.t(h := s.stem(x)))) * F.relu(
    s.h(h)) + (1 - t) * h), stem=nn.Linear(16, 20), t=nn.Linear(20, 20), h=nn.Linear(20, 20),
    out=nn.Linear(20, 5)), ROWS)
add("mixture_density", lambda: Of(lambda s, x: torch.cat([torch.softmax((o := s.body(x))[:, :4], 1),
    o[:, 4:8], torch.exp(o[:, 8:])], 1), body=mlp(16, 24, 24, 12, act=nn.Tanh)), ROWS)


def _coupling(s: Any, x: Tensor) -> Tensor:
    for net_ in (s.a, s.b, s.a2):
        u, v = x.chunk(2, -1)
        scale, shift = net_(u).chunk(2, -1)
        x = torch.cat([v * torch.exp(torch.tanh(scale)) + shift, u], -1).flip(-1)
    return x


add("real_nvp", lambda: Of(_coupling, a=mlp(8, 20, 16), b=mlp(8, 24, 16), a2=mlp(8, 12, 16)), ROWS)

# --- indices of channels moved about

add("channel_stride", lambda: Of(lambda s, x: s.h(torch.cat([s.b(s.a(x)[:, ::2]),
    s.a(x)[:, 1::2]], 1)), a=cbr(3, 16), b=cbr(8, 8), h=head(16)), IMAGE)
add("channel_flip", lambda: Of(lambda s, x: s.h(s.b(s.a(x).flip(1))), a=cbr(3, 16), b=cbr(16, 12),
    h=head(12)), IMAGE)
add("channel_roll", lambda: Of(lambda s, x: s.h(s.b(s.a(x) + s.a(x).roll(4, 1))), a=cbr(3, 16),
    b=cbr(16, 12), h=head(12)), IMAGE)
add("channel_permuted", lambda: Of(lambda s, x: s.h(s.b(s.a(x)[:, s.order])), a=cbr(3, 16),
    b=cbr(16, 12), h=head(12), order=nn.Buffer(torch.randperm(16))), IMAGE)
add("channel_padded", lambda: Of(lambda s, x: s.h(F.relu(F.pad(F.avg_pool2d(s.a(x), 2),
    (0, 0, 0, 0, 4, 4)) + s.b(s.a(x)))), a=cbr(3, 8), b=cbr(8, 16, 3, 2), h=head(16)), IMAGE)
add("partial_conv", lambda: Of(lambda s, x: s.h(s.c(torch.cat([s.b((h := s.a(x))[:, :4]),
    h[:, 4:]], 1))), a=cbr(3, 16), b=cbr(4, 4), c=cbr(16, 20, 1), h=head(20)), IMAGE)
add("focus_stem", lambda: Of(lambda s, x: s.h(s.b(s.a(torch.cat([x[..., i::2, j::2] for i in (0, 1)
    for j in (0, 1)], 1)))), a=cbr(12, 16), b=cbr(16, 12), h=head(12)), IMAGE)
add("pixel_unshuffle", lambda: Of(lambda s, x: s.c(F.pixel_shuffle(s.b(F.pixel_unshuffle(
    s.a(x), 2)), 2)), a=cbr(3, 8), b=cbr(32, 16), c=nn.Conv2d(4, 3, 3, 1, 1)), IMAGE)
add("stacked_and_max", lambda: Of(lambda s, x: s.h(torch.stack([s.a(x), s.b(x), s.c(x)]).amax(0)),
    a=cbr(3, 12), b=cbr(3, 12, 5), c=cbr(3, 12, 1), h=head(12)), IMAGE)
add("unbind_cat", lambda: Of(lambda s, x: s.h(torch.cat(s.a(x).unflatten(1, (4, 4)).unbind(2), 1)),
    a=cbr(3, 16), h=head(16)), IMAGE)
add("repeat_channels", lambda: Of(lambda s, x: s.h(s.b(s.a(x).repeat(1, 2, 1, 1))), a=cbr(3, 8),
    b=cbr(16, 12), h=head(12)), IMAGE)
add("repeat_interleave", lambda: Of(lambda s, x: s.h(s.b(s.a(x).repeat_interleave(2, 1))),
    a=cbr(3, 8), b=cbr(16, 12), h=head(12)), IMAGE)
add("shift_channels", lambda: Of(lambda s, x: s.h(s.b(torch.cat([p.roll(k - 1, 3) for k, p in
    enumerate(s.a(x).chunk(4, 1))], 1))), a=cbr(3, 16), b=cbr(16, 12), h=head(12)), IMAGE)
add("max_out_channels", lambda: Of(lambda s, x: s.h(s.a(x).unflatten(1, (8, 2)).amax(2)),
    a=cbr(3, 16), h=head(8)), IMAGE)
add("simple_gate", lambda: Of(lambda s, x: s.c((h := s.b(s.a(x)).chunk(2, 1))[0] * h[1]),
    a=cbr(3, 8), b=nn.Conv2d(8, 24, 3, 1, 1), c=nn.Conv2d(12, 3, 1)), IMAGE)
add("gated_conv", lambda: Of(lambda s, x: s.h(F.glu(s.b(s.a(x)), 1)), a=cbr(3, 8),
    b=nn.Conv2d(8, 24, 3, 1, 1), h=head(12)), IMAGE)
add("crelu", lambda: Of(lambda s, x: s.h(s.b(F.relu(torch.cat([h := s.a(x), -h], 1)))),
    a=nn.Conv2d(3, 8, 3, 1, 1), b=cbr(16, 12), h=head(12)), IMAGE)

# --- convolutions

add("multiplier", lambda: Of(lambda s, x: s.h(s.c(s.b(s.a(x)))), a=cbr(3, 8), b=cbr(8, 24, g=8),
    c=cbr(24, 12, 1), h=head(12)), IMAGE)
add("groups_differ", lambda: Of(lambda s, x: s.h(s.d(s.c(s.b(s.a(x))))), a=cbr(3, 24),
    b=cbr(24, 24, g=4), c=cbr(24, 24, g=3), d=cbr(24, 12, 1), h=head(12)), IMAGE)
add("grouped_transposed", lambda: Of(lambda s, x: s.c(F.relu(s.b(s.a(x)))), a=cbr(3, 16, s=2),
    b=nn.ConvTranspose2d(16, 8, 3, 2, 1, 1, groups=4), c=nn.Conv2d(8, 3, 3, 1, 1)), IMAGE)
add("depthwise_transposed", lambda: Of(lambda s, x: s.c(s.b(s.a(x))), a=cbr(3, 16, s=2),
    b=nn.ConvTranspose2d(16, 16, 4, 2, 1, groups=16), c=nn.Conv2d(16, 3, 3, 1, 1)), IMAGE)
add("large_kernel", lambda: Of(lambda s, x: s.h((h := s.a(x)) * s.p(s.d(s.b(h)))), a=cbr(3, 16),
    b=nn.Conv2d(16, 16, 5, padding=2, groups=16), p=nn.Conv2d(16, 16, 1), h=head(16),
    d=nn.Conv2d(16, 16, 7, padding=9, groups=16, dilation=3)), IMAGE)
add("blur_pool", lambda: Of(lambda s, x: s.h(s.b(F.conv2d(F.pad(s.a(x), (1, 1, 1, 1), "reflect"),
    s.k, stride=2, groups=12))), a=cbr(3, 12), b=cbr(12, 16), h=head(16),
    k=nn.Buffer(torch.ones(12, 1, 3, 3) / 9)), IMAGE)
add("spectral_norm", lambda: Of(lambda s, x: s.h(F.leaky_relu(s.a(x))), h=head(16),
    a=nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 16, 3, 2, 1))), IMAGE)
add("dynamic_conv", lambda: Of(lambda s, x: s.h(F.relu(F.conv2d((h := s.a(x)).reshape(1, -1, 32,
    32), torch.einsum("bk,koihw->boihw", torch.softmax(s.g(h.mean((2, 3))), 1), s.w).reshape(-1, 8,
    3, 3), padding=1, groups=2).reshape(2, 12, 32, 32))), a=cbr(3, 8), g=nn.Linear(8, 4),
    w=w(4, 12, 8, 3, 3), h=head(12)), IMAGE, by=("legacy17", "dynamo18"))
add("bilinear_pooling", lambda: Of(lambda s, x: s.out(F.normalize(torch.einsum("bcs,bds->bcd",
    f := s.a(x).flatten(2), f).flatten(1))), a=cbr(3, 8, s=2), out=nn.Linear(64, 5)), IMAGE)
add("coord_conv", lambda: Of(lambda s, x: s.h(s.a(torch.cat([x, s.grid.expand(x.shape[0], -1, -1,
    -1)], 1))), a=cbr(5, 16), h=head(16), grid=nn.Buffer(torch.rand(1, 2, 32, 32))), IMAGE)
add("max_unpool", lambda: Of(lambda s, x: s.c(F.interpolate(F.max_pool2d(s.a(x), 3, 2, 1),
    scale_factor=2, mode="bicubic")), a=cbr(3, 12), c=nn.Conv2d(12, 2, 1)), IMAGE)
add("lp_pool", lambda: Of(lambda s, x: s.h(F.lp_pool2d(F.relu(s.a(x)), 2, 2)),
    a=nn.Conv2d(3, 12, 3), h=head(12)), IMAGE)
add("local_response", lambda: Of(lambda s, x: s.h(F.local_response_norm(s.a(x), 5)), a=cbr(3, 12),
    h=head(12)), IMAGE)
add("generalised_mean", lambda: Of(lambda s, x: s.out(s.a(x).clamp(min=1e-6).pow(s.p).mean(
    (2, 3)).pow(1 / s.p)), a=cbr(3, 12), p=torch.tensor(3.0), out=nn.Linear(12, 5)), IMAGE)
add("prelu", lambda: Of(lambda s, x: s.h(s.q(s.b(s.p(s.a(x))))), a=nn.Conv2d(3, 12, 3), h=head(16),
    p=nn.PReLU(12), b=nn.Conv2d(12, 16, 3, groups=4), q=nn.PReLU()), IMAGE)
add("filter_response", lambda: Of(lambda s, x: s.h(torch.maximum(s.g * ((h := s.a(x)) * torch.rsqrt(
    (h**2).mean((2, 3), keepdim=True) + 1e-6)) + s.b, s.t)), a=nn.Conv2d(3, 12, 3),
    g=w(1, 12, 1, 1) + 1, b=w(1, 12, 1, 1), t=w(1, 12, 1, 1), h=head(12)), IMAGE)
add("batch_instance", lambda: Of(lambda s, x: s.h(s.r * s.bn(h := s.a(x)) + (1 - s.r) * F.
    instance_norm(h)), a=nn.Conv2d(3, 12, 3), bn=nn.BatchNorm2d(12), r=w(1, 12, 1, 1), h=head(12)),
    IMAGE)
add("ada_in", lambda: Of(lambda s, x, y: s.c(F.instance_norm(s.a(x)) * (1 + (g := s.style(y).view(
    -1, 24, 1, 1))[:, :12]) + g[:, 12:]), a=cbr(3, 12), style=mlp(16, 20, 24),
    c=nn.Conv2d(12, 3, 1)), IMAGE, ROWS)
add("film", lambda: Of(lambda s, x, y: s.h(F.relu(s.a(x) * (g := s.e(y).chunk(2, 1))[0][..., None,
    None] + g[1][..., None, None])), a=cbr(3, 12), e=nn.Linear(16, 24), h=head(12)), IMAGE, ROWS)
add("spade", lambda: Of(lambda s, x, y: s.c(s.n(s.a(x)) * (1 + s.g(m := F.relu(s.m(y)))) +
    s.b(m)), a=cbr(3, 12), n=nn.BatchNorm2d(12, affine=False), m=nn.Conv2d(3, 8, 3, 1, 1),
    g=nn.Conv2d(8, 12, 3, 1, 1), b=nn.Conv2d(8, 12, 3, 1, 1), c=nn.Conv2d(12, 3, 1)), IMAGE, IMAGE)
add("grid_sample", lambda: Of(lambda s, x: s.h(F.grid_sample(s.a(x), F.affine_grid(
    s.loc(x.mean((2, 3))).view(-1, 2, 3), (2, 12, 32, 32), align_corners=False),
    align_corners=False)), a=cbr(3, 12), loc=nn.Linear(3, 6), h=head(12)), IMAGE,
    by=("legacy17", "dynamo20"))
add("correlation", lambda: Of(lambda s, x, y: s.c(torch.cat([(s.a(x) * F.pad(s.a(y), (2, 2, 2, 2))[
    ..., i:i + 32, j:j + 32]).mean(1, keepdim=True) for i in (0, 2, 4) for j in (0, 2, 4)], 1)),
    a=cbr(3, 12), c=nn.Conv2d(9, 2, 3, 1, 1)), IMAGE, IMAGE)


def _cost_volume(s: Any, x: Tensor, y: Tensor) -> Tensor:
    a, b = s.a(x), s.a(y)
    parts = [torch.cat([a, F.pad(b[..., : 32 - d], (d, 0))], 1) for d in range(4)]
    volume = s.c(F.relu(s.b(torch.stack(parts, 2)))).squeeze(1)
    return (torch.softmax(volume, 1) * s.d.view(1, 4, 1, 1)).sum(1)


add("stereo", lambda: Of(_cost_volume, a=cbr(3, 8), b=nn.Conv3d(16, 10, 3, 1, 1),
    c=nn.Conv3d(10, 1, 3, 1, 1), d=nn.Buffer(torch.arange(4.0))), IMAGE, IMAGE)

# --- attention

add("linear_attention", lambda: Of(lambda s, x: s.out(torch.einsum("bshd,bhde,bsh->bshe",
    q := F.elu(s.q(x).unflatten(-1, (2, 8))) + 1, torch.einsum("bshd,bshe->bhde", k := F.elu(
    s.k(x).unflatten(-1, (2, 8))) + 1, s.v(x).unflatten(-1, (2, 8))), 1 / (torch.einsum(
    "bshd,bhd->bsh", q, k.sum(1)) + 1e-6)).flatten(2)), q=nn.Linear(16, 16), k=nn.Linear(16, 16),
    v=nn.Linear(16, 16), out=nn.Linear(16, 5)), TOKENS)


def _heads(t: Tensor, h: int = 2) -> Tensor:
    return t.unflatten(-1, (h, -1)).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    a = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(8) + bias, -1)
    return (a @ v).transpose(1, 2).flatten(2)


def _qkv(**more: Any) -> dict[str, Any]:
    parts = {n: nn.Linear(16, 16) for n in ("q", "k", "v")}
    return {**parts, "out": nn.Linear(16, 5), **more}


add("cosine_attention", lambda: Of(lambda s, x: s.out(_attend(10 * F.normalize(_heads(s.q(x)),
    dim=-1), F.normalize(_heads(s.k(x)), dim=-1), _heads(s.v(x)))), **_qkv()), TOKENS)
add("talking_heads", lambda: Of(lambda s, x: s.out((torch.einsum("bhqk,hg->bgqk", torch.softmax(
    torch.einsum("bhqk,hg->bgqk", _heads(s.q(x)) @ _heads(s.k(x)).mT, s.pre), -1), s.post) @ _heads(
    s.v(x))).transpose(1, 2).flatten(2)), **_qkv(pre=w(2, 2), post=w(2, 2))), TOKENS)
add("multi_query", lambda: Of(lambda s, x: s.out(_attend(_heads(s.q(x)), s.k1(x)[:, None],
    s.v1(x)[:, None])), q=nn.Linear(16, 16), k1=nn.Linear(16, 8), v1=nn.Linear(16, 8),
    out=nn.Linear(16, 5)), TOKENS)
add("shaw_positions", lambda: Of(lambda s, x: s.out(_attend(q := _heads(s.q(x)), _heads(s.k(x)),
    _heads(s.v(x)), torch.einsum("bhqd,qkd->bhqk", q, s.r[s.d]))), **_qkv(r=w(17, 8),
    d=nn.Buffer(torch.arange(9)[:, None] - torch.arange(9) + 8))), TOKENS)
add("relative_shift", lambda: Of(lambda s, x: s.out(_attend(q := _heads(s.q(x)), _heads(s.k(x)),
    _heads(s.v(x)), F.pad(q @ s.r, (1, 0)).reshape(2, 2, 10, 9)[:, :, 1:])), **_qkv(r=w(2, 8, 9))),
    TOKENS, by=("legacy17", "dynamo18"))
add("null_key", lambda: Of(lambda s, x: s.out(_attend(_heads(s.q(x)), torch.cat([s.nk.expand(
    x.shape[0], -1, -1, -1), _heads(s.k(x))], 2), torch.cat([s.nv.expand(x.shape[0], -1, -1, -1),
    _heads(s.v(x))], 2))), **_qkv(nk=w(1, 2, 1, 8), nv=w(1, 2, 1, 8))), TOKENS)
add("head_gates", lambda: Of(lambda s, x: s.out((torch.softmax(_heads(s.q(x)) @ _heads(s.k(x)).mT,
    -1) @ _heads(s.v(x)) * torch.sigmoid(s.g(x)).mT[..., None]).transpose(1, 2).flatten(2)),
    **_qkv(g=nn.Linear(16, 2))), TOKENS)
add("transposed_attention", lambda: Of(lambda s, x: s.out(x + (torch.softmax(F.normalize(s.q(x).mT
    .unflatten(1, (2, 8)), dim=-1) @ F.normalize(s.k(x).mT.unflatten(1, (2, 8)), dim=-1).mT * s.t,
    -1) @ s.v(x).mT.unflatten(1, (2, 8))).flatten(1, 2).mT), **_qkv(t=w(2, 1, 1))), TOKENS)
add("axial_attention", lambda: Of(lambda s, x: s.h(sum(_attend(_heads((t := s.a(x).permute(p).
    flatten(0, 1)) @ s.wq), _heads(t @ s.wk), _heads(t @ s.wv)).unflatten(0, (2, 16)).permute(b)
    for p, b in (((0, 2, 3, 1), (0, 3, 1, 2)), ((0, 3, 2, 1), (0, 3, 2, 1))))), a=cbr(3, 16, s=2),
    wq=w(16, 16), wk=w(16, 16), wv=w(16, 16), h=head(16)), IMAGE, by=("legacy17", "dynamo18"))
add("attention_pooling", lambda: Of(lambda s, x: s.out((torch.softmax(s.v(torch.tanh(s.a(x))), 1) *
    s.b(x)).sum(1)), a=nn.Linear(16, 12), v=nn.Linear(12, 1), b=nn.Linear(16, 20),
    out=nn.Linear(20, 5)), TOKENS)
add("gated_pooling", lambda: Of(lambda s, x: s.out((torch.softmax(s.w_(torch.tanh(s.a(x)) *
    torch.sigmoid(s.b(x))), 1).mT @ s.c(x)).flatten(1)), a=nn.Linear(16, 12), b=nn.Linear(16, 12),
    w_=nn.Linear(12, 3), c=nn.Linear(16, 10), out=nn.Linear(30, 5)), TOKENS)
add("latent_queries", lambda: Of(lambda s, x: s.out(_attend(_heads((s.latent @ s.wq).expand(
    x.shape[0], -1, -1)), _heads(s.k(x)), _heads(s.v(x))).flatten(1)), latent=w(1, 4, 16),
    wq=w(16, 16), k=nn.Linear(16, 16), v=nn.Linear(16, 16), out=nn.Linear(64, 5)), TOKENS)
add("synthesizer", lambda: Of(lambda s, x: s.out(torch.softmax(s.b(F.relu(s.a(x))), -1) @ s.v(x)),
    a=nn.Linear(16, 12), b=nn.Linear(12, 9), v=nn.Linear(16, 20), out=nn.Linear(20, 5)), TOKENS)
add("spatial_gate", lambda: Of(lambda s, x: s.out((h := F.gelu(s.a(x)).chunk(2, -1))[0] *
    (s.w_ @ s.n(h[1]) + s.b)), a=nn.Linear(16, 24), n=nn.LayerNorm(12), w_=w(9, 9), b=w(9, 1),
    out=nn.Linear(12, 5)), TOKENS)
add("capsules", lambda: Of(lambda s, x: torch.einsum("bijo,bij->bjo", u := torch.einsum(
    "bid,ijdo->bijo", s.a(x).unflatten(1, (6, 4)), s.w), torch.softmax((u * u.sum(1, keepdim=True)
    ).sum(-1), -1)), a=nn.Linear(16, 24), w=w(6, 5, 4, 3)), ROWS)
add("memory_network", lambda: Of(lambda s, x: s.out(torch.softmax(s.q(x) @ s.keys.T, -1) @ s.values
    + x), q=nn.Linear(16, 12), keys=w(20, 12), values=w(20, 16), out=nn.Linear(16, 5)), ROWS)

# --- tables, graphs, series

add("field_tokens", lambda: Of(lambda s, x: s.out(F.relu(torch.cat([s.cls.expand(x.shape[0], -1,
    -1), x[..., None] * s.w + s.b], 1)).flatten(1)), w=w(16, 8), b=w(16, 8), cls=w(1, 1, 8),
    out=nn.Linear(136, 5)), ROWS)
add("cin", lambda: Of(lambda s, x: s.out(F.relu(s.c((x[:, :, None] * x[:, None]).flatten(1, 2))).
    sum(-1)), c=nn.Conv1d(81, 12, 1), out=nn.Linear(12, 1)), (2, 9, 16))
add("factorisation", lambda: Of(lambda s, x: s.l(x).sum((1, 2), keepdim=False)[:, None] + 0.5 * (
    (e := s.e(x)).sum(1) ** 2 - (e**2).sum(1)).sum(1, keepdim=True) + s.deep(e.flatten(1)),
    e=nn.Embedding(30, 8), l=nn.Embedding(30, 1), deep=mlp(48, 20, 1)), (2, 6), high=30)
add("embedding_bag", lambda: Of(lambda s, x: s.out(F.relu(s.e(x))), out=nn.Linear(12, 5),
    e=nn.EmbeddingBag(30, 12, mode="sum")), (2, 6), high=30)
add("text_cnn", lambda: Of(lambda s, x: s.out(torch.cat([F.relu(c(s.e(x).mT)).amax(-1) for c in
    (s.a, s.b, s.c)], 1)), e=nn.Embedding(30, 12), a=nn.Conv1d(12, 8, 2), b=nn.Conv1d(12, 8, 3),
    c=nn.Conv1d(12, 8, 4), out=nn.Linear(24, 5)), (2, 9), high=30)
add("two_towers", lambda: Of(lambda s, x, y: F.cosine_similarity(s.a(x), s.b(y)), a=mlp(16, 24, 12),
    b=mlp(16, 20, 12)), ROWS, ROWS)
add("target_attention", lambda: Of(lambda s, x, y: s.out(torch.cat([(s.g(torch.cat([q := s.e(y)[:,
    None].expand(-1, 9, -1), h := s.e(x), q - h, q * h], -1)) * h).sum(1), s.e(y)], -1)),
    e=nn.Linear(16, 10), g=mlp(40, 16, 1), out=mlp(20, 12, 1)), TOKENS, ROWS)
add("graph_attention", lambda: Of(lambda s, x, y: s.out(F.elu(torch.softmax(F.leaky_relu((h := s.w_(
    x)) @ s.a + (h @ s.b).mT) + torch.log(torch.sigmoid(y)), -1) @ h)), w_=nn.Linear(16, 12),
    a=w(12, 1), b=w(12, 1), out=nn.Linear(12, 5)), TOKENS, (2, 9, 9))
add("graph_isomorphism", lambda: Of(lambda s, x, y: s.out(s.m((1 + s.eps) * (h := s.a(x)) + y @ h).
    sum(1)), a=nn.Linear(16, 12), eps=torch.tensor(0.1), m=mlp(12, 20, 14), out=nn.Linear(14, 5)),
    TOKENS, (2, 9, 9))
add("scatter_messages", lambda: Of(lambda s, x: s.out(torch.zeros(2, 9, 12).index_add(1, s.dst,
    F.relu(s.m(x[:, s.src])))), m=nn.Linear(16, 12), out=nn.Linear(12, 5),
    dst=nn.Buffer(torch.tensor([0, 1, 1, 4, 8])), src=nn.Buffer(torch.tensor([3, 2, 5, 7, 1]))),
    TOKENS, by=("legacy17", "dynamo18"))
add("edge_conv", lambda: Of(lambda s, x: s.out(F.relu(s.m(torch.cat([(n := h.unsqueeze(1).expand(-1,
    9, -1, -1).gather(2, torch.cdist(x, x).topk(3, largest=False)[1][..., None].expand(-1, -1, -1,
    12))) - (h[:, :, None]), n], -1))).amax(2).mean(1)) if (h := s.a(x)) is not None else x,
    a=nn.Linear(16, 12), m=nn.Linear(24, 14), out=nn.Linear(14, 5)), TOKENS)
add("d_linear", lambda: Of(lambda s, x: s.a(t := F.avg_pool1d(F.pad(x, (2, 2), "replicate"), 5, 1))
    + s.b(x - t), a=mlp(64, 24, 12), b=mlp(64, 24, 12)), WAVE)
add("n_beats", lambda: Of(lambda s, x: (o := s.f(h := s.a(x)), s.c(x - s.b(h)) + o)[1],
    a=mlp(16, 24, 20), b=nn.Linear(20, 16), f=nn.Linear(20, 6), c=mlp(16, 24, 6)), ROWS)
add("sci_net", lambda: Of(lambda s, x: s.out(torch.stack([(a := x[..., ::2]) * torch.exp(torch.tanh(
    s.p(b := x[..., 1::2]))), b - s.q(a)], -1).flatten(-2)), p=nn.Sequential(nn.Conv1d(4, 10, 3,
    padding=1), nn.ReLU(), nn.Conv1d(10, 4, 3, padding=1)), q=nn.Conv1d(4, 4, 3, padding=1),
    out=nn.Linear(64, 6)), WAVE)
add("causal_tcn", lambda: Of(lambda s, x: s.out(F.relu(s.r(x) + s.b(F.relu(s.a(x)[..., :-4]))[
    ..., :-8])[..., -1]), a=nn.Conv1d(4, 12, 3, padding=4, dilation=2), r=nn.Conv1d(4, 12, 1),
    b=nn.Conv1d(12, 12, 3, padding=8, dilation=4), out=nn.Linear(12, 5)), WAVE)
add("inverted_transformer", lambda: Of(lambda s, x: s.f(s.o(_attend(_heads(s.q(h := s.e(x))),
    _heads(s.k(h)), _heads(s.v(h)))) + h), e=nn.Linear(64, 16), o=nn.Linear(16, 16),
    f=nn.Linear(16, 12), q=nn.Linear(16, 16), k=nn.Linear(16, 16), v=nn.Linear(16, 16)), WAVE)
add("statistics_pooling", lambda: Of(lambda s, x: s.out(torch.cat([(h := F.relu(s.a(x))).mean(-1),
    h.std(-1)], 1)), a=nn.Conv1d(4, 12, 5), out=nn.Linear(24, 5)), WAVE)
add("attentive_statistics", lambda: Of(lambda s, x: s.out(torch.cat([m := ((a := torch.softmax(s.w_(
    torch.tanh(s.v(h := F.relu(s.a(x))))), -1)) * h).sum(-1), torch.sqrt(((a * h * h).sum(-1) -
    m * m).clamp(min=1e-5))], 1)), a=nn.Conv1d(4, 12, 5), v=nn.Conv1d(12, 6, 1),
    w_=nn.Conv1d(6, 12, 1), out=nn.Linear(24, 5)), WAVE)
add("tas_net", lambda: Of(lambda s, x: s.d((torch.sigmoid(s.m(F.relu(e := s.e(x)))).unflatten(1,
    (2, 12)) * e[:, None]).flatten(0, 1)), e=nn.Conv1d(4, 12, 8, 4), m=nn.Conv1d(12, 24, 1),
    d=nn.ConvTranspose1d(12, 1, 8, 4)), WAVE)
add("snake", lambda: Of(lambda s, x: s.c((h := s.a(x)) + torch.sin(s.al * h) ** 2 / s.al),
    a=nn.Conv1d(4, 12, 5), al=w(1, 12, 1).abs() + 0.5, c=nn.ConvTranspose1d(12, 2, 4, 2)), WAVE)
add("joint_network", lambda: Of(lambda s, x, y: s.out(torch.tanh(s.a(x)[:, :, None] + s.b(y)[:,
    None])), a=nn.Linear(16, 20), b=nn.Linear(16, 20), out=nn.Linear(20, 6)), TOKENS, TOKENS)


def _sru(s: Any, x: Tensor) -> Tensor:
    z, f, r = s.w_(x).chunk(3, -1)
    f, r = torch.sigmoid(f), torch.sigmoid(r)
    c = torch.zeros_like(z[:, 0])
    outs = []
    for t in range(5):
        c = f[:, t] * c + (1 - f[:, t]) * z[:, t]
        outs.append(r[:, t] * torch.tanh(c) + (1 - r[:, t]) * x[:, t])
    return s.out(torch.stack(outs, 1))


add("sru", lambda: Of(_sru, w_=nn.Linear(16, 48), out=nn.Linear(16, 5)), (2, 5, 16))


def _decode(s: Any, x: Tensor) -> Tensor:
    memory, _ = s.encoder(x)
    state, outs = memory.mean(1), []
    for _ in range(3):
        score = s.v(torch.tanh(s.wm(memory) + s.wq(state)[:, None])).squeeze(-1)
        context = (torch.softmax(score, 1)[:, None] @ memory)[:, 0]
        state = s.cell(context, state)
        outs.append(s.out(torch.cat([state, context], 1)))
    return torch.stack(outs, 1)


add("additive_attention", lambda: Of(_decode, encoder=nn.GRU(16, 12, batch_first=True),
    v=nn.Linear(8, 1), wm=nn.Linear(12, 8), wq=nn.Linear(12, 8), cell=nn.GRUCell(12, 12),
    out=nn.Linear(24, 5)), TOKENS, by=("legacy17", "dynamo18"))
add("lstm_cell_steps", lambda: Of(lambda s, x: s.out(s.c2(x[:, 2], s.c2(x[:, 1], s.c2(
    x[:, 0])))[0]), c2=nn.LSTMCell(16, 12), out=nn.Linear(12, 5)), TOKENS)
add("projected_lstm", lambda: Of(lambda s, x: s.out(s.r(x)[0]), out=nn.Linear(16, 5),
    r=nn.LSTM(16, 8, 2, batch_first=True, bidirectional=True)), TOKENS)
add("residual_lstm", lambda: Of(lambda s, x: s.out((h := s.a(x)[0]) + s.b(h)[0]), out=nn.Linear(12,
    5), a=nn.LSTM(16, 12, batch_first=True), b=nn.LSTM(12, 12, batch_first=True)), TOKENS)
add("conv_then_gru", lambda: Of(lambda s, x: s.out(s.r(s.a(x).permute(3, 0, 1, 2).flatten(
    2))[1][0]), a=cbr(3, 6, s=4), r=nn.GRU(48, 12), out=nn.Linear(12, 5)), IMAGE)
