#!/usr/bin/env python3
"""Speed of PyTorch's trap step on one NVIDIA GPU, as one line of JSON.

  torch_gpu_bench.py --network wrn-16-1|resnet-34 --way eager|channels_last_bf16|compiled [--batch N] [--reps R] [--inner S]

eager: f32 without TF32. channels_last_bf16: NHWC under bf16 autocast. compiled: the same under torch.compile (max-autotune, which
captures graphs). Steps are on one random batch that stays on the GPU: choosing, shifting and mirroring pictures is not timed. The
optimiser is Adam in its fused form. WideResNet-16-1 at 32x32 is torch_trap.py's; ResNet-34 at 224x224 is cut after the first
block of its last stage, with five transposed convolutions as decoder.
"""
import argparse, json, time
from statistics import median
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch_trap import TrapNet, tv

CLASSES = 10


class Block(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout)
        self.short = None if cin == cout else nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x):
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(h + (x if self.short is None else self.short(x)))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        stages = [64] * 3 + [128] * 4 + [256] * 6 + [512] * 3
        blocks = [Block(a, b, 1 if a == b else 2) for a, b in zip([64] + stages, stages)]
        front = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        self.stem = nn.Sequential(*front, *blocks[:14])
        self.head = nn.Sequential(*blocks[14:], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES))
        widths, decoder = [512, 256, 128, 64, 32, 3], []
        for cin, cout in zip(widths, widths[1:]):
            decoder += [nn.ConvTranspose2d(cin, cout, 4, 2, 1), nn.Sigmoid() if cout == 3 else nn.ReLU()]
        self.decoder = nn.Sequential(*decoder)

    def forward(self, x):
        s = self.stem(x)
        return self.head(s), self.decoder(s)


def main(a):
    if not torch.cuda.is_available():
        raise SystemExit('torch_gpu_bench.py: PyTorch finds no GPU')
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    half, side = a.way != 'eager', 32 if a.network == 'wrn-16-1' else 224
    net = (TrapNet(CLASSES) if a.network == 'wrn-16-1' else ResNet()).cuda()
    x, y = torch.rand(a.batch, 3, side, side, device='cuda'), torch.randint(0, CLASSES, (a.batch,), device='cuda')
    if half:
        net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, weight_decay=5e-4, fused=True)

    def losses(x, y):
        logits, r = net(x)
        return F.cross_entropy(logits.float(), y) + 10 * F.mse_loss(r.float(), x) + tv(r.float())

    if a.way == 'compiled':
        losses = torch.compile(losses, mode='max-autotune')

    def steps(n):
        for _ in range(n):
            with torch.autocast('cuda', torch.bfloat16, enabled=half):
                loss = losses(x, y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        torch.cuda.synchronize()

    steps(10)
    seconds = []
    for _ in range(a.reps):
        start = time.perf_counter()
        steps(a.inner)
        seconds.append((time.perf_counter() - start) / a.inner)
    print(json.dumps(dict(bench='stage1', network=a.network, way=a.way, gpu=torch.cuda.get_device_name(), torch=torch.__version__,
                          batch=a.batch, img_s=a.batch / median(seconds), gib=torch.cuda.max_memory_allocated() / 2**30)))


p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument('--network', choices=['wrn-16-1', 'resnet-34'], default='wrn-16-1')
p.add_argument('--way', choices=['eager', 'channels_last_bf16', 'compiled'], default='eager')
p.add_argument('--batch', type=int, default=256)
p.add_argument('--reps', type=int, default=5)
p.add_argument('--inner', type=int, default=50)
if __name__ == '__main__':
    main(p.parse_args())
