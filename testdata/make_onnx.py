"""Writes the small ONNX models the tests read, each with random weights, and a picture with PyTorch's answer to it.

usage: make_onnx.py OUT_DIR        (needs torch, onnx and numpy)

Every model takes "images" [N, 3, H, W] and gives "logits" [N, 7]. `answers.npz` holds `NAME.x` [2, 3, H, W] and
`NAME.y` [2, 7].
"""

import pathlib
import sys
import warnings

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def unit(cin, cout, kernel=3, stride=1, groups=1, act=nn.ReLU):
    """Convolution, batch norm, activation."""
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(cout), act()
    )


class SqueezeExcite(nn.Module):
    """Channels scaled by 1x1 convolutions of their means."""

    def __init__(self, c):
        super().__init__()
        self.down, self.up = nn.Conv2d(c, 4, 1), nn.Conv2d(4, c, 1)

    def forward(self, x):
        return x * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Mobile(nn.Module):
    """Depthwise convolutions, hard swish, ReLU6, squeeze and excite, a residual connection."""

    def __init__(self):
        super().__init__()
        self.stem = unit(3, 8, stride=2, act=nn.Hardswish)
        self.narrow = nn.Sequential(
            unit(8, 16, 1, act=nn.ReLU6),
            unit(16, 16, 5, groups=16, act=nn.Hardswish),
            SqueezeExcite(16),
            nn.Conv2d(16, 8, 1),
            nn.BatchNorm2d(8),
        )
        self.wide = nn.Sequential(unit(8, 8, 3, 2, 8, nn.Hardswish), unit(8, 24, 1, act=nn.Hardswish))
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 16), nn.Hardswish(), nn.Dropout(), nn.Linear(16, 7)
        )

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.wide(x + self.narrow(x)))


class Concat(nn.Module):
    """Branches side by side, SiLU, leaky ReLU, average pooling that leaves padding out, unequal strides."""

    def __init__(self):
        super().__init__()
        self.stem = unit(3, 8, act=nn.SiLU)
        self.a = unit(8, 6, 1, act=nn.LeakyReLU)
        self.b = unit(8, 10, 3, 1, 2, act=lambda: nn.LeakyReLU(0.2))
        self.c = nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.Conv2d(8, 4, (1, 3), padding=(0, 1)))
        self.join = unit(20, 12, stride=(2, 1), act=nn.Sigmoid)
        self.fc = nn.Linear(24, 7)

    def forward(self, x):
        x = self.stem(x)
        x = self.join(torch.cat([self.a(x), self.b(x), self.c(x)], 1))
        return self.fc(torch.cat([x.mean((2, 3)), F.adaptive_max_pool2d(x, 1).flatten(1)], 1))


class Gemm(nn.Module):
    """Input normalisation, max and average pooling with padding, flattening of a map, layers with and without bias."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.25]).view(1, 3, 1, 1))
        self.conv = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.fc1, self.fc2, self.fc3 = nn.Linear(72, 20), nn.Linear(20, 12, bias=False), nn.Linear(12, 7)

    def forward(self, x):
        x = (x - self.mean) / self.std
        x = F.max_pool2d(F.relu(self.conv(x)), 3, 2, 1)
        x = F.avg_pool2d(self.conv2(x), 3, 3, 1)
        return self.fc3(self.fc2(F.relu(self.fc1(x.flatten(1)))))


class Resnet(nn.Module):
    """A 7x7 convolution of stride 2, max pooling, residual units with and without projection."""

    class Unit(nn.Module):
        def __init__(self, cin, cout, stride):
            super().__init__()
            self.a, self.b = unit(cin, cout, 3, stride), unit(cout, cout, act=nn.Identity)
            self.short = nn.Identity() if stride == 1 else unit(cin, cout, 1, stride, act=nn.Identity)

        def forward(self, x):
            return F.relu(self.b(self.a(x)) + self.short(x))

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(unit(3, 8, 7, 2), nn.MaxPool2d(3, 2, 1), self.Unit(8, 8, 1), self.Unit(8, 16, 2))
        self.fc = nn.Linear(16, 7)

    def forward(self, x):
        return self.fc(F.adaptive_avg_pool2d(self.body(x), 1).flatten(1))


class Shapes(nn.Module):
    """Views, explicit padding, constants on either side, a pre-activation batch norm, SE by linear layers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)
        self.bn, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, groups=2, bias=False)
        self.scale = nn.Parameter(torch.linspace(-1, 1, 6).view(6, 1, 1))
        self.fc = nn.Linear(6, 7)

    def forward(self, x):
        x = self.conv(F.pad(x, (0, 1, 2, 1)))
        gate = torch.sigmoid(self.up(F.leaky_relu(self.down(x.mean((2, 3))))))
        x = x * gate.view(x.size(0), 8, 1, 1)
        y = F.relu(self.bn(x))
        y = 1 - y * 0.5 + F.hardswish(x) - y * y
        y = torch.clamp(self.conv2(y) * self.scale + 0.1, 0, 6)
        y = F.avg_pool2d(y, 8)
        return self.fc(y.view(y.size(0), -1))


class Squeeze(nn.Module):
    """Squeezes after padding, which PyTorch exports as control flow over shapes."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 7)

    def forward(self, x):
        return self.fc(F.avg_pool2d(F.relu(self.conv(F.pad(x, (1, 1, 1, 1)))), 8).squeeze(3).squeeze(2))


MODELS = {
    "mobile": (Mobile, (33, 29), True),
    "concat": (Concat, (15, 17), True),
    "gemm": (Gemm, (20, 20), False),
    "resnet": (Resnet, (47, 51), False),
    "shapes": (Shapes, (19, 21), False),
    "squeeze": (Squeeze, (8, 8), False),
}


def main(out):
    warnings.simplefilter("ignore")
    answers = {}
    for seed, (name, (build, size, keep_norms)) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        net = build().eval()
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, std=0.3)
                nn.init.normal_(layer.running_mean, std=0.3)
                nn.init.uniform_(layer.running_var, 0.2, 0.5)
            elif isinstance(layer, (nn.Conv2d, nn.Linear)):
                # Large enough that the answer depends on the picture.
                nn.init.normal_(layer.weight, std=2 / layer.weight[0].numel() ** 0.5)
        x = torch.rand(2, 3, *size)
        x[1] = x[1] * torch.linspace(0, 1, size[1]) + torch.tensor([0.5, -0.5, 0]).view(3, 1, 1)
        with torch.no_grad():
            answers[f"{name}.x"], answers[f"{name}.y"] = x.numpy(), net(x).numpy()
        mode = torch.onnx.TrainingMode
        torch.onnx.export(
            net,
            (x[:1],),
            str(out / f"{name}.onnx"),
            dynamo=False,
            opset_version=17,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "N"}, "logits": {0: "N"}},
            training=mode.PRESERVE if keep_norms else mode.EVAL,
        )
    np.savez(out / "answers.npz", **answers)


main(pathlib.Path(sys.argv[1]))
