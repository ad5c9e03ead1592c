#!/usr/bin/env python3
"""Writes standard image classifiers as ONNX: MobileNetV2 (arXiv 1801.04381) and ResNet-34 (arXiv 1512.03385), exported by PyTorch.

  make_vision.py OUT_DIR [--models resnet34,mobilenet_v2_0.25,mobilenet_v2_1.0] [--seed 0]

Weights are random, from the seed. Batch norms get the running statistics of a random batch and random scales and shifts, so that
every layer of the exported model does work that cannot be left out, and values stay of one magnitude down to the logits. Input
`images` `[1, 3, 224, 224]`, output `logits` `[1, 1000]`; opset 17.
"""
import argparse
from pathlib import Path
import torch
from torch import nn

SIDE, CLASSES = 224, 1000


def conv(cin, cout, kernel, stride=1, groups=1):
    return nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)


def joint(cin, cout, kernel, stride=1, groups=1, act=True):
    layers = [conv(cin, cout, kernel, stride, groups), nn.BatchNorm2d(cout)]
    return layers + [nn.ReLU6()] if act else layers


class Inverted(nn.Module):
    """Expansion, depthwise convolution, linear projection; a skip where the shape stays."""
    def __init__(self, cin, cout, stride, expand):
        super().__init__()
        wide = cin * expand
        layers = joint(cin, wide, 1) if expand > 1 else []
        self.body = nn.Sequential(*layers, *joint(wide, wide, 3, stride, wide), *joint(wide, cout, 1, act=False))
        self.skip = stride == 1 and cin == cout

    def forward(self, x):
        return x + self.body(x) if self.skip else self.body(x)


def mobilenet_v2(width):
    def channels(c):
        """The nearest multiple of 8, not below 90 % of the width asked for."""
        c = c * width
        rounded = max(8, int(c + 4) // 8 * 8)
        return rounded + 8 if rounded < .9 * c else rounded

    c = channels(32)
    layers = joint(3, c, 3, 2)
    # Expansion, channels, units, stride of the first (table 2 of the paper).
    for expand, cout, units, stride in [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]:
        for unit in range(units):
            layers.append(Inverted(c, channels(cout), stride if unit == 0 else 1, expand))
            c = channels(cout)
    last = 1280 if width <= 1 else channels(1280)
    return nn.Sequential(*layers, *joint(c, last, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, CLASSES))


class Basic(nn.Module):
    """Two 3x3 convolutions and a skip, projected where the shape changes."""
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.body = nn.Sequential(conv(cin, cout, 3, stride), nn.BatchNorm2d(cout), nn.ReLU(), conv(cout, cout, 3), nn.BatchNorm2d(cout))
        change = stride != 1 or cin != cout
        self.skip = nn.Sequential(conv(cin, cout, 1, stride), nn.BatchNorm2d(cout)) if change else nn.Identity()

    def forward(self, x):
        return torch.relu(self.body(x) + self.skip(x))


def resnet34():
    layers, c = [conv(3, 64, 7, 2), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], 64
    for stage, units in enumerate([3, 4, 6, 3]):
        for unit in range(units):
            cout = 64 << stage
            layers.append(Basic(c, cout, 2 if stage and unit == 0 else 1))
            c = cout
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, CLASSES))


MODELS = {'resnet34': resnet34, 'mobilenet_v2_0.25': lambda: mobilenet_v2(.25), 'mobilenet_v2_1.0': lambda: mobilenet_v2(1.)}


def randomise(net):
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode='fan_out')
        elif isinstance(m, nn.BatchNorm2d):
            m.momentum = None
            nn.init.uniform_(m.weight, .5, 1.5)
            nn.init.uniform_(m.bias, -.5, .5)
        elif isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, 0, .05)
            nn.init.uniform_(m.bias, -.1, .1)
    net.train()
    with torch.no_grad():
        net(torch.rand(8, 3, SIDE, SIDE))
    return net.eval()


def main(a):
    out = Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    for name in a.models:
        torch.manual_seed(a.seed)
        net = randomise(MODELS[name]())
        torch.onnx.export(net, (torch.rand(1, 3, SIDE, SIDE),), str(out / (name + '.onnx')), input_names=['images'],
                          output_names=['logits'], opset_version=17, dynamo=False)


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out'); p.add_argument('--seed', type=int, default=0)
    p.add_argument('--models', type=lambda text: text.split(','), default=list(MODELS))
    a = p.parse_args()
    if any(name not in MODELS for name in a.models): p.error('models: ' + ', '.join(MODELS))
    main(a)
