"""Small hand-written PyTorch nets, one per family that the model libraries do not bring."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.zoo.torch_export import Dynamic, Sample, net

BATCH: Dynamic = {0: "batch"}
IMAGE: Dynamic = {0: "batch", 2: "height", 3: "width"}


def on_image(module: nn.Module, side: int = 32, channels: int = 3, free: bool = False) -> Sample:
    return Sample(
        module, {"x": torch.randn(2, channels, side, side)}, {"x": IMAGE if free else BATCH}
    )


def cbr(i: int, o: int, k: int = 3, s: int = 1, g: int = 1, act: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False),
        nn.BatchNorm2d(o),
    ]
    return nn.Sequential(*layers, *([nn.SiLU()] if act else []))


def head(channels: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


# --- encoders and decoders


class UNet(nn.Module):
    def __init__(self, norm: str = "group", up: str = "transposed"):
        super().__init__()

        def double(i: int, o: int) -> nn.Sequential:
            def normed() -> nn.Module:
                return nn.GroupNorm(4, o) if norm == "group" else nn.InstanceNorm2d(o, affine=True)

            return nn.Sequential(nn.Conv2d(i, o, 3, 1, 1), normed(), nn.ReLU(),
                                 nn.Conv2d(o, o, 3, 1, 1), normed(), nn.ReLU())  # fmt: skip

        self.a, self.b, self.c = double(3, 8), double(8, 16), double(16, 24)
        if up == "transposed":
            self.up2: nn.Module = nn.ConvTranspose2d(24, 16, 2, 2)
            self.up1: nn.Module = nn.ConvTranspose2d(16, 8, 2, 2)
        else:
            mode = "bilinear" if up == "bilinear" else "nearest"
            self.up2 = nn.Sequential(nn.Upsample(scale_factor=2, mode=mode), nn.Conv2d(24, 16, 1))
            self.up1 = nn.Sequential(nn.Upsample(scale_factor=2, mode=mode), nn.Conv2d(16, 8, 1))
        self.d, self.e, self.out = double(32, 16), double(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        d = self.d(torch.cat([self.up2(c), b], 1))
        return self.out(self.e(torch.cat([self.up1(d), a], 1)))


@net()
def unet_groupnorm() -> Sample:
    return on_image(UNet())


@net("legacy17d", "dynamo18d", "legacy13")
def unet_instancenorm_bilinear() -> Sample:
    return on_image(UNet("instance", "bilinear"))


@net()
def unet_nearest_free_size() -> Sample:
    return on_image(UNet("group", "nearest"), free=False)


class Padded(nn.Module):
    """Resizes to the size of a skip, which may be odd."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cbr(3, 8), cbr(8, 16, 3, 2), nn.Conv2d(24, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = F.interpolate(self.b(a), size=a.shape[2:], mode="nearest")
        return self.c(torch.cat([a, b], 1))


@net("legacy17d", "dynamo20d")
def resize_to_skip() -> Sample:
    return on_image(Padded(), 33, free=True)


@net()
def autoencoder() -> Sample:
    return on_image(nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 64, 12), nn.ReLU(), nn.Linear(12, 16 * 64), nn.ReLU(),
        nn.Unflatten(1, (16, 8, 8)),
        nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Sigmoid(),
    ))  # fmt: skip


class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(20, 32), nn.ReLU())
        self.mean, self.log_var = nn.Linear(32, 6), nn.Linear(32, 6)
        self.decode = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 20), nn.Sigmoid())

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encode(x)
        mean, log_var = self.mean(hidden), self.log_var(hidden)
        return self.decode(mean + noise * torch.exp(0.5 * log_var)), mean, log_var


@net()
def vae() -> Sample:
    return Sample(Vae(), {"x": torch.rand(2, 20), "noise": torch.randn(2, 6)},
                  {"x": BATCH, "noise": BATCH})  # fmt: skip


@net()
def gan_generator() -> Sample:
    module = nn.Sequential(
        nn.ConvTranspose2d(10, 32, 4, 1, 0, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip
    return Sample(module, {"z": torch.randn(2, 10, 1, 1)}, {"z": BATCH})


class StyleBlock(nn.Module):
    """A convolution modulated per sample, as StyleGAN2 writes it: grouped by the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.style, self.weight = nn.Linear(8, 12), nn.Parameter(torch.randn(16, 12, 3, 3))
        self.to_image, self.stem = nn.Conv2d(16, 3, 1), nn.Conv2d(3, 12, 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        weight = self.weight[None] * self.style(z)[:, None, :, None, None]
        weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4], keepdim=True) + 1e-8)
        x = F.conv2d(
            x.reshape(1, b * c, h, w), weight.reshape(b * 16, c, 3, 3), padding=1, groups=b
        )
        return self.to_image(F.leaky_relu(x.reshape(b, 16, h, w), 0.2))


@net("legacy17", "dynamo18")
def stylegan_block() -> Sample:
    return Sample(StyleBlock(), {"x": torch.randn(2, 3, 16, 16), "z": torch.randn(2, 8)})


# --- convolutional blocks


class Res2Net(nn.Module):
    def __init__(self, by: str = "split") -> None:
        super().__init__()
        self.by = by
        self.stem, self.reduce = cbr(3, 24, 3, 2), cbr(24, 32, 1)
        self.convs = nn.ModuleList(cbr(8, 8) for _ in range(3))
        self.expand, self.head = cbr(32, 24, 1, act=False), head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.reduce(x)
        parts = y.chunk(4, 1) if self.by == "chunk" else torch.split(y, 8, 1)
        made = [parts[0]]
        for k, conv in enumerate(self.convs):
            made.append(conv(parts[k + 1] + made[-1] if k else parts[1]))
        return self.head(F.relu(x + self.expand(torch.cat(made, 1))))


@net()
def res2net() -> Sample:
    return on_image(Res2Net())


@net()
def res2net_chunk() -> Sample:
    return on_image(Res2Net("chunk"))


class Ghost(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.o, half = o, (o + 1) // 2
        self.primary, self.cheap = cbr(i, half, 1), cbr(half, half, 3, g=half)

    def forward(self, x: Tensor) -> Tensor:
        y = self.primary(x)
        return torch.cat([y, self.cheap(y)], 1)[:, : self.o]


@net()
def ghostnet() -> Sample:
    return on_image(nn.Sequential(cbr(3, 8, 3, 2), Ghost(8, 15), Ghost(15, 24), head(24)))


class C2f(nn.Module):
    def __init__(self, i: int, o: int, n: int = 2) -> None:
        super().__init__()
        self.c = o // 2
        self.one, self.two = cbr(i, o, 1), cbr((2 + n) * self.c, o, 1)
        self.m = nn.ModuleList(
            nn.Sequential(cbr(self.c, self.c), cbr(self.c, self.c)) for _ in range(n)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.one(x).chunk(2, 1))
        for m in self.m:
            y.append(y[-1] + m(y[-1]))
        return self.two(torch.cat(y, 1))


class Sppf(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.one, self.two = cbr(c, c // 2, 1), cbr(2 * c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = [self.one(x)]
        for _ in range(3):
            y.append(F.max_pool2d(y[-1], 5, 1, 2))
        return self.two(torch.cat(y, 1))


class Yolo(nn.Module):
    """YOLOv8-like: C2f, SPPF, PAN, decoupled heads with distribution-focal boxes."""

    def __init__(self, classes: int = 4, bins: int = 8) -> None:
        super().__init__()
        self.bins, self.classes = bins, classes
        self.stem = nn.Sequential(cbr(3, 8, 3, 2), cbr(8, 16, 3, 2))
        self.p3, self.p4 = C2f(16, 16), nn.Sequential(cbr(16, 32, 3, 2), C2f(32, 32), Sppf(32))
        self.up, self.down, self.out4 = C2f(48, 16, 1), cbr(16, 16, 3, 2), C2f(48, 32, 1)
        self.box = nn.ModuleList(
            nn.Sequential(cbr(c, 16), nn.Conv2d(16, 4 * bins, 1)) for c in (16, 32)
        )
        self.cls = nn.ModuleList(
            nn.Sequential(cbr(c, 16), nn.Conv2d(16, classes, 1)) for c in (16, 32)
        )

    def forward(self, x: Tensor) -> Tensor:
        p3 = self.p3(self.stem(x))
        p4 = self.p4(p3)
        n3 = self.up(torch.cat([F.interpolate(p4, scale_factor=2.0), p3], 1))
        n4 = self.out4(torch.cat([self.down(n3), p4], 1))
        found = []
        for k, p in enumerate((n3, n4)):
            made = torch.cat([self.box[k](p), self.cls[k](p)], 1)
            found.append(made.view(x.shape[0], 4 * self.bins + self.classes, -1))
        box, cls = torch.cat(found, 2).split((4 * self.bins, self.classes), 1)
        b, _, a = box.shape
        box = box.view(b, 4, self.bins, a).transpose(2, 1).softmax(1)
        box = (box * torch.arange(self.bins, dtype=torch.float32).view(1, -1, 1, 1)).sum(1)
        lt, rb = box.chunk(2, 1)
        return torch.cat([(rb + lt) / 2, rb - lt, cls.sigmoid()], 1)


@net("legacy17d", "dynamo18d", "legacy13")
def yolo_v8() -> Sample:
    return on_image(Yolo(), 64)


class Yolo5(nn.Module):
    """YOLOv5-like: Focus slices, CSP by two convolutions, anchors in the head."""

    def __init__(self, anchors: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.na, self.no = anchors, classes + 5
        self.stem, self.a, self.b = cbr(12, 16), cbr(16, 12, 1), cbr(16, 12, 1)
        self.m, self.c = nn.Sequential(cbr(12, 12, 1), cbr(12, 12)), cbr(24, 20, 1)
        self.detect = nn.Conv2d(20, anchors * self.no, 1)
        self.register_buffer("sizes", torch.rand(1, anchors, 1, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        cut = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
        x = self.stem(torch.cat(cut, 1))
        y = self.a(x)
        x = self.detect(self.c(torch.cat([y + self.m(y), self.b(x)], 1)))
        n, _, h, w = x.shape
        x = x.view(n, self.na, self.no, h, w).permute(0, 1, 3, 4, 2).contiguous().sigmoid()
        xy, wh, rest = x.split((2, 2, self.no - 4), 4)
        return torch.cat([xy * 2, (wh * 2) ** 2 * self.sizes, rest], 4).view(n, -1, self.no)


@net("legacy17d", "dynamo20d", "legacy14")
def yolo_v5() -> Sample:
    return on_image(Yolo5())


class Fpn(nn.Module):
    def __init__(self, weighted: bool = False) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = cbr(3, 8, 3, 2), cbr(8, 16, 3, 2), cbr(16, 24, 3, 2)
        self.lateral = nn.ModuleList(nn.Conv2d(c, 12, 1) for c in (8, 16, 24))
        self.smooth = nn.ModuleList(nn.Conv2d(12, 12, 3, 1, 1) for _ in range(3))
        self.head = nn.Sequential(nn.Conv2d(12, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 5, 1))
        self.w = nn.Parameter(torch.rand(3, 2)) if weighted else None

    def fuse(self, k: int, a: Tensor, b: Tensor) -> Tensor:
        if self.w is None:
            return a + b
        w = F.relu(self.w[k])
        w = w / (w.sum() + 1e-4)
        return a * w[0] + b * w[1]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        c1 = self.c1(x)
        c2 = self.c2(c1)
        maps = [conv(c) for conv, c in zip(self.lateral, (c1, c2, self.c3(c2)), strict=True)]
        for k in (1, 0):
            maps[k] = self.fuse(k, maps[k], F.interpolate(maps[k + 1], scale_factor=2.0))
        if self.w is not None:
            maps[2] = self.fuse(2, maps[2], F.max_pool2d(maps[1], 2))
        return tuple(self.head(s(m)) for s, m in zip(self.smooth, maps, strict=True))


@net()
def fpn() -> Sample:
    return on_image(Fpn(), 64)


@net()
def bifpn() -> Sample:
    return on_image(Fpn(True), 64)


class Attended(nn.Module):
    """A residual block with an attention module behind it."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.stem, self.body, self.attention = cbr(3, 16, 3, 2), cbr(16, 16, act=False), attention
        self.head = head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(x + self.attention(self.body(x))))


class Se(nn.Module):
    def __init__(self, c: int = 16, linear: bool = True) -> None:
        super().__init__()
        self.linear, layer = linear, nn.Linear if linear else lambda i, o: nn.Conv2d(i, o, 1)
        self.fc = nn.Sequential(layer(c, c // 2), nn.ReLU(), layer(c // 2, c), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        if self.linear:
            b, c = x.shape[:2]
            return x * self.fc(F.adaptive_avg_pool2d(x, 1).view(b, c)).view(b, c, 1, 1).expand_as(x)
        return x * self.fc(x.mean((2, 3), keepdim=True))


class Cbam(nn.Module):
    def __init__(self, c: int = 16) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Conv2d(c, c // 4, 1), nn.ReLU(), nn.Conv2d(c // 4, c, 1))
        self.spatial = nn.Conv2d(2, 1, 7, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.sigmoid(self.mlp(x.mean((2, 3), True)) + self.mlp(x.amax((2, 3), True)))
        pooled = torch.cat([x.mean(1, True), x.max(1, keepdim=True)[0]], 1)
        return x * torch.sigmoid(self.spatial(pooled))


class Eca(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)
        return x * torch.sigmoid(self.conv(y).transpose(-1, -2).unsqueeze(-1))


class Coordinate(nn.Module):
    def __init__(self, c: int = 16) -> None:
        super().__init__()
        self.one, self.h, self.w = cbr(c, 8, 1), nn.Conv2d(8, c, 1), nn.Conv2d(8, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.mean(3, True), x.mean(2, True).transpose(2, 3)
        y = self.one(torch.cat([rows, columns], 2))
        h, w = torch.split(y, [x.shape[2], x.shape[3]], 2)
        return x * torch.sigmoid(self.h(h)) * torch.sigmoid(self.w(w.transpose(2, 3)))


class NonLocal(nn.Module):
    def __init__(self, c: int = 16) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Conv2d(c, 8, 1), nn.Conv2d(c, 8, 1), nn.Conv2d(c, 12, 1)
        self.o = nn.Conv2d(12, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = (layer(x).flatten(2) for layer in (self.q, self.k, self.v))
        attention = torch.softmax(q.transpose(1, 2) @ k / 8**0.5, -1)
        return x + self.o((v @ attention.transpose(1, 2)).view(b, -1, h, w))


class Xca(nn.Module):
    """Attention between the channels of each head, as in XCiT and Restormer."""

    def __init__(self, c: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.t = heads, nn.Parameter(torch.rand(heads, 1, 1) + 0.5)
        self.qkv, self.o = nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)
        self.dw = nn.Conv2d(3 * c, 3 * c, 3, 1, 1, groups=3 * c)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = (
            p.reshape(b, self.heads, c // self.heads, h * w)
            for p in self.dw(self.qkv(x)).chunk(3, 1)
        )
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        a = (q @ k.transpose(-2, -1) * self.t).softmax(-1)
        return self.o((a @ v).reshape(b, c, h, w))


class SelectiveKernel(nn.Module):
    def __init__(self, c: int = 16) -> None:
        super().__init__()
        self.a, self.b = cbr(c, c), cbr(c, c, 5)
        self.one, self.two = nn.Conv2d(c, 8, 1), nn.Conv2d(8, 2 * c, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([self.a(x), self.b(x)], 1)
        z = self.two(F.relu(self.one(y.sum(1).mean((2, 3), True))))
        z = z.view(x.shape[0], 2, x.shape[1], 1, 1).softmax(1)
        return (y * z).sum(1)


for _name, _attention in {
    "se_linear": Se, "se_conv": lambda: Se(linear=False), "cbam": Cbam, "eca": Eca,
    "coordinate": Coordinate, "non_local": NonLocal, "xca": Xca, "sk": SelectiveKernel,
}.items():  # fmt: skip
    net(name=_name)(lambda attention=_attention: on_image(Attended(attention())))


class StandardisedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


@net("legacy17d", "dynamo18d", "legacy13")
def weight_standardised() -> Sample:
    return on_image(nn.Sequential(
        StandardisedConv(3, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.ReLU(),
        StandardisedConv(16, 24, 3, 1, 1), nn.GroupNorm(4, 24), nn.ReLU(), head(24),
    ))  # fmt: skip


@net()
def weight_normed() -> Sample:
    wrap = torch.nn.utils.parametrizations.weight_norm
    return on_image(nn.Sequential(wrap(nn.Conv2d(3, 16, 3)), nn.ReLU(),
                                  wrap(nn.Conv2d(16, 24, 3)), nn.ReLU(), head(24)))  # fmt: skip


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = cbr(3, 16, 3, 2), nn.Conv2d(16, 24, 1, groups=2)
        self.dw, self.two = cbr(24, 24, g=24), nn.Conv2d(24, 16, 1, groups=2)
        self.head = head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.one(x))
        b, c, h, w = y.shape
        y = y.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)
        return self.head(F.relu(x + self.two(self.dw(y))))


@net("legacy17d", "dynamo18d", "legacy13")
def shufflenet_v1() -> Sample:
    return on_image(Shuffle())


@net()
def channel_shuffle_module() -> Sample:
    return on_image(nn.Sequential(cbr(3, 16), nn.ChannelShuffle(4), nn.Conv2d(16, 8, 3, groups=4),
                                  nn.ReLU(), head(8)))  # fmt: skip


@net()
def super_resolution() -> Sample:
    return on_image(nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 8, 3, 1, 1), nn.ReLU(),
        nn.PixelUnshuffle(2), nn.Conv2d(32, 24, 3, 1, 1), nn.PReLU(24), nn.Conv2d(24, 48, 3, 1, 1),
        nn.PixelShuffle(4), nn.Conv2d(3, 3, 3, 1, 1),
    ), 16)  # fmt: skip


class Conditional(nn.Module):
    """CondConv: a mixture of expert kernels per sample; must lock or follow, never break."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.route, self.head = cbr(3, 8), nn.Linear(8, 3), head(12)
        self.experts = nn.Parameter(torch.randn(3, 12 * 8 * 9) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        weight = (torch.sigmoid(self.route(x.mean((2, 3)))) @ self.experts).view(b * 12, 8, 3, 3)
        y = F.conv2d(x.reshape(1, b * c, h, w), weight, padding=1, groups=b)
        return self.head(F.relu(y.view(b, 12, h, w)))


@net("legacy17", "dynamo18")
def conditional_conv() -> Sample:
    return on_image(Conditional())


class Involution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.kernel, self.head = cbr(3, 16), nn.Conv2d(16, 9 * 4, 1), head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        k = self.kernel(x).view(b, 4, 1, 9, h, w)
        y = F.unfold(x, 3, padding=1).view(b, 4, c // 4, 9, h, w)
        return self.head((k * y).sum(3).view(b, c, h, w))


@net("legacy17", "dynamo18", "dynamo20d")
def involution() -> Sample:
    return on_image(Involution(), 16)


@net()
def dense_block() -> Sample:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = cbr(3, 8)
            self.layers = nn.ModuleList(
                nn.Sequential(
                    nn.BatchNorm2d(8 + 4 * k), nn.ReLU(), nn.Conv2d(8 + 4 * k, 4, 3, 1, 1)
                )
                for k in range(4)
            )
            self.head = head(24)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for layer in self.layers:
                x = torch.cat([x, layer(x)], 1)
            return self.head(x)

    return on_image(Dense())


@net()
def conv3d() -> Sample:
    module = nn.Sequential(
        nn.Conv3d(3, 8, 3, 1, 1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(8, 12, (3, 1, 1), 1, (1, 0, 0)), nn.ReLU(),
        nn.Conv3d(12, 16, (1, 3, 3)), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    return Sample(module, {"x": torch.randn(2, 3, 8, 16, 16)}, {"x": BATCH})


class TemporalShift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = cbr(3, 16), cbr(16, 24), head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        y = x.view(n // 4, 4, c, h, w)
        left = torch.cat([y[:, 1:, :4], torch.zeros_like(y[:, :1, :4])], 1)
        right = torch.cat([torch.zeros_like(y[:, :1, 4:8]), y[:, :-1, 4:8]], 1)
        y = torch.cat([left, right, y[:, :, 8:]], 2).view(n, c, h, w)
        return self.head(self.body(y))


@net("legacy17", "dynamo18")
def temporal_shift() -> Sample:
    return Sample(TemporalShift(), {"x": torch.randn(8, 3, 16, 16)})


# --- sequences


class WaveNet(nn.Module):
    def __init__(self, fused: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 12, 1)
        self.gates = nn.ModuleList(
            nn.Conv1d(12, 24, 2, dilation=2**k, padding=2**k) for k in range(3)
        )
        self.skip = nn.ModuleList(nn.Conv1d(12, 16, 1) for _ in range(3))
        self.residual = nn.ModuleList(nn.Conv1d(12, 12, 1) for _ in range(3))
        self.out = nn.Sequential(nn.ReLU(), nn.Conv1d(16, 16, 1), nn.ReLU(), nn.Conv1d(16, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[2]
        x, total = self.stem(x), 0.0
        for gate, skip, residual in zip(self.gates, self.skip, self.residual, strict=True):
            a, b = gate(x)[..., :length].chunk(2, 1)
            y = torch.tanh(a) * torch.sigmoid(b)
            total, x = total + skip(y), x + residual(y)
        return self.out(total)


@net()
def wavenet() -> Sample:
    return Sample(WaveNet(), {"x": torch.randn(2, 1, 40)}, {"x": {0: "batch", 2: "time"}})


class Recurrent(nn.Module):
    def __init__(self, kind: str, last: str = "mean") -> None:
        super().__init__()
        self.embed, self.last = nn.Embedding(20, 12), last
        self.rnn = getattr(nn, kind)(12, 16, num_layers=2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(32, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        y, state = self.rnn(self.embed(tokens))
        if self.last == "state":
            hidden = state[0] if isinstance(state, tuple) else state
            return self.out(torch.cat([hidden[-2], hidden[-1]], 1))
        return self.out(y.mean(1) if self.last == "mean" else y[:, -1])


def _tokens(module: nn.Module) -> Sample:
    tokens = {"tokens": torch.randint(0, 20, (2, 9))}
    return Sample(module, tokens, {"tokens": {0: "batch", 1: "sequence"}})


for _kind, _last in (("LSTM", "mean"), ("LSTM", "state"), ("GRU", "last"), ("GRU", "state"),
                     ("RNN", "mean")):  # fmt: skip
    net("legacy17d", "legacy13", "dynamo18", name=f"{_kind.lower()}_{_last}")(
        lambda kind=_kind, last=_last: _tokens(Recurrent(kind, last))
    )


class ConvLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates, self.out = nn.Conv2d(3 + 8, 32, 3, 1, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        for t in range(3):
            i, f, g, o = self.gates(torch.cat([x[:, t], h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.out(h), h


class ConvLstmZero(ConvLstm):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        zero = x.new_zeros(x.shape[0], 8, x.shape[3], x.shape[4])
        return super().forward(x, zero, zero)[0]


@net()
def conv_lstm_state() -> Sample:
    state = torch.randn(2, 8, 8, 8)
    return Sample(ConvLstm(), {"x": torch.randn(2, 3, 3, 8, 8), "h": state, "c": state.clone()},
                  dict.fromkeys("xhc", BATCH))  # fmt: skip


@net()
def conv_lstm() -> Sample:
    return Sample(ConvLstmZero(), {"x": torch.randn(2, 3, 3, 8, 8)}, {"x": BATCH})


@net()
def transformer_encoder() -> Sample:
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, norm_first=True)
    module = nn.Sequential(nn.Linear(6, 32),
                           nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
                           nn.Linear(32, 5))  # fmt: skip
    return Sample(module, {"x": torch.randn(2, 9, 6)}, {"x": {0: "batch", 1: "sequence"}})


class Seq2Seq(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Transformer(32, 4, 1, 1, 48, batch_first=True)
        self.a, self.b, self.out = nn.Linear(6, 32), nn.Linear(4, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out(self.inner(self.a(x), self.b(y)))


@net()
def torch_transformer() -> Sample:
    return Sample(Seq2Seq(), {"x": torch.randn(2, 9, 6), "y": torch.randn(2, 7, 4)},
                  {"x": BATCH, "y": BATCH})  # fmt: skip


class Conformer(nn.Module):
    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(10, d), nn.LayerNorm(d)
        self.point, self.dw = nn.Conv1d(d, 2 * d, 1), nn.Conv1d(d, d, 5, padding=2, groups=d)
        self.bn, self.back = nn.BatchNorm1d(d), nn.Conv1d(d, d, 1)
        self.ffn = nn.Sequential(nn.Linear(d, 48), nn.SiLU(), nn.Linear(48, d))
        self.out = nn.Linear(d, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + 0.5 * self.ffn(x)
        y = F.glu(self.point(self.norm(x).transpose(1, 2)), dim=1)
        y = self.back(F.silu(self.bn(self.dw(y)))).transpose(1, 2)
        return self.out(x + y)


@net()
def conformer() -> Sample:
    return Sample(Conformer(), {"x": torch.randn(2, 20, 10)}, {"x": {0: "batch", 1: "time"}})


class Einsum(nn.Module):
    """Attention written by einsum, heads as an axis of the weights."""

    def __init__(self, d: int = 24, h: int = 3, k: int = 8) -> None:
        super().__init__()
        self.wq, self.wk, self.wv = (nn.Parameter(torch.randn(d, h, k) * 0.2) for _ in range(3))
        self.wo, self.out = nn.Parameter(torch.randn(h, k, d) * 0.2), nn.Linear(d, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("bsd,dhk->bhsk", x, w) for w in (self.wq, self.wk, self.wv))
        a = torch.softmax(torch.einsum("bhsk,bhtk->bhst", q, k), -1)
        y = torch.einsum("bhst,bhtk->bshk", a, v)
        return self.out(x + torch.einsum("bshk,hkd->bsd", y, self.wo))


@net()
def einsum_attention() -> Sample:
    return Sample(Einsum(), {"x": torch.randn(2, 9, 24)}, {"x": {0: "batch", 1: "sequence"}})


class Mixer(nn.Module):
    def __init__(self, s: int = 9, d: int = 16) -> None:
        super().__init__()
        self.a, self.b = nn.LayerNorm(d), nn.LayerNorm(d)
        self.stem, self.out = nn.Linear(6, d), nn.Linear(d, 5)
        self.token = nn.Sequential(nn.Linear(s, 20), nn.GELU(), nn.Linear(20, s))
        self.channel = nn.Sequential(nn.Linear(d, 24), nn.GELU(), nn.Linear(24, d))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.token(self.a(x).transpose(1, 2)).transpose(1, 2)
        return self.out((x + self.channel(self.b(x))).mean(1))


@net()
def mlp_mixer() -> Sample:
    return Sample(Mixer(), {"x": torch.randn(2, 9, 6)}, {"x": BATCH})


class Moe(nn.Module):
    """A dense mixture of experts: every expert runs, the gate weighs them."""

    def __init__(self, d: int = 16, experts: int = 3) -> None:
        super().__init__()
        self.gate = nn.Linear(d, experts)
        self.one = nn.Parameter(torch.randn(experts, d, 24) * 0.2)
        self.two = nn.Parameter(torch.randn(experts, 24, d) * 0.2)
        self.out = nn.Linear(d, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(x[None] @ self.one) @ self.two
        return self.out(x + (y * torch.softmax(self.gate(x), -1).t()[..., None]).sum(0))


@net()
def mixture_of_experts() -> Sample:
    return Sample(Moe(), {"x": torch.randn(6, 16)}, {"x": BATCH})


# --- graphs, recommenders, pairs, points


class Gcn(nn.Module):
    def __init__(self, nodes: int = 10) -> None:
        super().__init__()
        a = (torch.rand(nodes, nodes) < 0.3).float() + torch.eye(nodes)
        self.register_buffer("adjacency", a / a.sum(1, keepdim=True))
        self.one, self.two, self.out = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.adjacency @ self.one(x))
        return self.out(F.relu(self.adjacency @ self.two(x)).mean(1))


@net()
def gcn() -> Sample:
    return Sample(Gcn(), {"x": torch.randn(2, 10, 6)}, {"x": BATCH})


class StGcn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a", torch.rand(3, 7, 7))
        self.one, self.time = nn.Conv2d(3, 3 * 8, 1), nn.Conv2d(8, 12, (3, 1), padding=(1, 0))
        self.head = head(12)

    def forward(self, x: Tensor) -> Tensor:
        n, _, t, v = x.shape
        y = self.one(x).view(n, 3, 8, t, v)
        return self.head(F.relu(self.time(torch.einsum("nkctv,kvw->nctw", y, self.a))))


@net()
def st_gcn() -> Sample:
    return Sample(StGcn(), {"x": torch.randn(2, 3, 8, 7)}, {"x": BATCH})


class Dlrm(nn.Module):
    def __init__(self, tables: Sequence[int] = (20, 30, 40), d: int = 8) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(n, d) for n in tables)
        self.bottom = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, d), nn.ReLU())
        self.register_buffer("upper", torch.triu_indices(4, 4, 1))
        self.top = nn.Sequential(nn.Linear(d + 6, 24), nn.ReLU(), nn.Linear(24, 1), nn.Sigmoid())

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        d = self.bottom(dense)
        e = torch.stack([d, *(t(sparse[:, k]) for k, t in enumerate(self.tables))], 1)
        z = (e @ e.transpose(1, 2))[:, self.upper[0], self.upper[1]]
        return self.top(torch.cat([d, z], 1))


def _clicks(module: nn.Module) -> Sample:
    inputs = {"dense": torch.randn(3, 5), "sparse": torch.randint(0, 20, (3, 3))}
    return Sample(module, inputs, {"dense": BATCH, "sparse": BATCH})


@net()
def dlrm() -> Sample:
    return _clicks(Dlrm())


class WideDeep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(20, d) for d in (4, 6, 8))
        self.cross = nn.ModuleList(nn.Linear(23, 23) for _ in range(2))
        self.deep = nn.Sequential(nn.Linear(23, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.out = nn.Linear(39, 1)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        x = torch.cat([dense, *(t(sparse[:, k]) for k, t in enumerate(self.tables))], 1)
        y = x
        for layer in self.cross:
            y = x * layer(y) + y
        return torch.sigmoid(self.out(torch.cat([y, self.deep(x)], 1)))


@net()
def deep_and_cross() -> Sample:
    return _clicks(WideDeep())


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            cbr(3, 8, 3, 2), cbr(8, 16, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.embed, self.out = nn.Linear(16, 12), nn.Linear(12, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        one, two = (self.embed(self.body(x)) for x in (a, b))
        return torch.sigmoid(self.out((one - two).abs()))


@net()
def siamese() -> Sample:
    inputs = {n: torch.randn(2, 3, 16, 16) for n in "ab"}
    return Sample(Siamese(), inputs, {"a": BATCH, "b": BATCH})


class Track(nn.Module):
    """SiamFC: one branch's map is the kernel that is slid over the other's."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(cbr(3, 8, 3, 2), nn.Conv2d(8, 12, 3))
        self.out = nn.Conv2d(12, 4, 1)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        z, x = self.body(z), self.body(x)
        b, c, h, w = x.shape
        k = z.reshape(b * c, 1, *z.shape[2:])
        y = F.conv2d(x.reshape(1, b * c, h, w), k, groups=b * c)
        return self.out(y.view(b, c, *y.shape[2:]))


@net("legacy17", "dynamo18")
def siamese_tracker() -> Sample:
    return Sample(Track(), {"z": torch.randn(1, 3, 16, 16), "x": torch.randn(1, 3, 32, 32)})


class PointNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.t = nn.Sequential(nn.Conv1d(3, 8, 1), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(),
                               nn.Linear(8, 9))  # fmt: skip
        self.one, self.two = nn.Conv1d(3, 16, 1), nn.Conv1d(16, 32, 1)
        self.seg = nn.Conv1d(48, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        t = self.t(x).view(-1, 3, 3) + torch.eye(3)
        x = F.relu(self.one(torch.bmm(t, x)))
        y = F.relu(self.two(x)).max(2, keepdim=True)[0]
        return self.seg(torch.cat([x, y.expand(-1, -1, x.shape[2])], 1))


@net()
def pointnet() -> Sample:
    return Sample(PointNet(), {"x": torch.randn(2, 3, 20)}, {"x": BATCH})


class VqVae(nn.Module):
    """Nearest code of a book: ArgMin over codes, Gather; the code axis must stay whole."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.book = (
            nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 6)),
            nn.Embedding(9, 6),
        )
        self.dec = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        z = self.enc(x)
        far = (z[:, None] - self.book.weight[None]).pow(2).sum(-1)
        return self.dec(self.book(far.argmin(1)))


@net()
def vq_vae() -> Sample:
    return Sample(VqVae(), {"x": torch.randn(3, 10)}, {"x": BATCH})


class Keypoints(nn.Module):
    """Heat maps and a soft argmax over a constant grid."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.maps = nn.Sequential(cbr(3, 8, 3, 2), cbr(8, 16)), nn.Conv2d(16, 5, 1)
        axis = torch.linspace(-1, 1, 16)
        self.register_buffer(
            "grid", torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(-1, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(self.body(x)).flatten(2).softmax(-1) @ self.grid


@net()
def keypoints() -> Sample:
    return on_image(Keypoints())


class Diffusion(nn.Module):
    """A residual block of a diffusion U-Net: time embedding, scale and shift."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("freq", torch.exp(-torch.arange(8) / 8.0 * 4))
        self.time = nn.Sequential(nn.Linear(16, 24), nn.SiLU())
        self.stem, self.n1, self.c1 = (
            nn.Conv2d(3, 16, 3, 1, 1),
            nn.GroupNorm(4, 16),
            nn.Conv2d(16, 24, 3, 1, 1),
        )
        self.emb, self.n2, self.c2 = (
            nn.Linear(24, 48),
            nn.GroupNorm(4, 24),
            nn.Conv2d(24, 16, 3, 1, 1),
        )
        self.out = nn.Conv2d(16, 3, 3, 1, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle = t[:, None] * self.freq[None]
        e = self.emb(self.time(torch.cat([angle.sin(), angle.cos()], -1)))[:, :, None, None]
        x = self.stem(x)
        scale, shift = e.chunk(2, 1)
        y = self.n2(self.c1(F.silu(self.n1(x)))) * (1 + scale) + shift
        return self.out(x + self.c2(F.silu(y)))


@net()
def diffusion_block() -> Sample:
    return Sample(Diffusion(), {"x": torch.randn(2, 3, 16, 16), "t": torch.rand(2)},
                  {"x": BATCH, "t": BATCH})  # fmt: skip


class Crnn(nn.Module):
    """OCR: the map's columns are the steps of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(cbr(1, 8), nn.MaxPool2d(2), cbr(8, 12), nn.MaxPool2d((2, 1)))
        self.rnn, self.out = nn.LSTM(12 * 4, 16, bidirectional=True), nn.Linear(32, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).permute(3, 0, 1, 2).flatten(2)
        return self.out(self.rnn(x)[0]).log_softmax(-1)


@net("legacy17d", "legacy13")
def crnn() -> Sample:
    return Sample(Crnn(), {"x": torch.randn(2, 1, 16, 32)}, {"x": BATCH})


class Normalised(nn.Module):
    """Cosine classifier over normalised embeddings, as ArcFace."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.bn = (
            nn.Sequential(cbr(3, 16, 3, 2), nn.Flatten(), nn.Linear(16 * 64, 12)),
            nn.BatchNorm1d(12),
        )
        self.weight = nn.Parameter(torch.randn(6, 12))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.bn(self.body(x))) @ F.normalize(self.weight).t()


@net()
def arcface() -> Sample:
    return on_image(Normalised(), 16)


class Maxout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(10, 36), nn.Linear(12, 24), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).view(-1, 12, 3).amax(-1)
        return self.out(torch.maximum(*self.b(x).chunk(2, -1)))


@net()
def maxout() -> Sample:
    return Sample(Maxout(), {"x": torch.randn(3, 10)}, {"x": BATCH})
