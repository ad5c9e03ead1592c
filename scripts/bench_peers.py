#!/usr/bin/env python3
"""Sets peers beside us: PyTorch (training), onnxruntime and tract (inference), on this machine's CPU, in one run.

Every round runs each contestant once, in turn, and starts with another one; figures are medians over the rounds. A ratio is
ours over the peer's within the same round, so that a machine that changes its speed between rounds changes both. A ratio
above 1 means that we are faster. Run it on an idle machine: thread pools that wait actively lose most when other programs
take their cores. The load average at the start is printed.

  scripts/bench_peers.py [--cases trap,replace,infer,vision] [--rounds 5] [--threads 1,2] [--epochs 5] [--json FILE]
  scripts/bench_peers.py --cases gpu [--rounds 5] [--binaries DIR]

`gpu` sets the trap step of the CUDA engine beside PyTorch on the first NVIDIA GPU, which both need to themselves. On a machine
without cargo, DIR holds `trap_speed` and `stemguard`, built elsewhere.

Peers run under $PYTHON (or --python), which needs torch, numpy, onnx and onnxruntime; without it, a virtual environment with all
four is made in target/peer-venv. Prints versions and a markdown table for each case; --json also writes every figure of
every round. Uses Python's standard library only.
"""
import argparse, json, os, platform, shutil, subprocess, sys, tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / 'scripts' / 'peer'
NEEDS = ['torch', 'numpy', 'onnx', 'onnxruntime']
VISION = ['mobilenet_v2_0.25', 'mobilenet_v2_1.0', 'resnet34']
# The published stage 2: passes over the holdout, and its size for CIFAR-10.
EPOCHS, PICTURES = 100, 2500
# Cached views of each picture, the default.
VIEWS = 8


def output(command, threads=None):
    """What a command prints; its thread pools are bounded. Fails with the command's own message."""
    env = dict(os.environ)
    if threads:
        env.update({name: str(threads) for name in ['OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'RAYON_NUM_THREADS']})
    done = subprocess.run([str(c) for c in command], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit('%s\nfailed with exit code %d:\n%s' % (' '.join(map(str, command)), done.returncode, done.stderr))
    return done.stdout


def lines(command, threads):
    return [json.loads(line) for line in output(command, threads).splitlines() if line.startswith('{')]


def peer_python(asked):
    if asked:
        return asked
    venv = ROOT / 'target' / 'peer-venv'
    python = venv / 'bin' / 'python'
    missing = 'import ' + ', '.join(NEEDS)
    if not python.exists() or subprocess.run([python, '-c', missing], stderr=subprocess.DEVNULL).returncode:
        print('making %s with %s' % (venv.relative_to(ROOT), ', '.join(NEEDS)), file=sys.stderr)
        output([sys.executable, '-m', 'venv', venv])
        output([python, '-m', 'pip', 'install', '--quiet', *NEEDS])
    return str(python)


def build(binaries):
    if binaries:
        return Path(binaries).resolve() / 'trap_speed', Path(binaries).resolve() / 'stemguard'
    # Everything: a choice of packages would build their libraries anew, with other features.
    output(['cargo', 'build', '--release', '--locked'])
    target = Path(os.environ.get('CARGO_TARGET_DIR', ROOT / 'target')) / 'release'
    return target / 'trap_speed', target / 'stemguard'


def versions(python):
    cpu = platform.processor() or platform.machine()
    if os.path.exists('/proc/cpuinfo'):
        names = [line.split(':', 1)[1].strip() for line in open('/proc/cpuinfo') if line.startswith('model name')]
        cpu = names[0] if names else cpu
    # onnxruntime is no peer on a GPU.
    tell = ('import torch, numpy\ntry: from onnxruntime import __version__ as o\nexcept ImportError: o = "none"\n'
            'print(torch.__version__, numpy.__version__, o)')
    torch, numpy, ort = output([python, '-c', tell]).split()
    lock = (ROOT / 'Cargo.lock').read_text().split('name = "tract-onnx"\nversion = "')
    commit = output(['git', 'describe', '--always', '--dirty']).strip() if shutil.which('git') and (ROOT / '.git').exists() else 'unknown'
    return dict(stemguard=commit, rustc=output(['rustc', '--version']).strip() if shutil.which('rustc') else 'none', torch=torch, numpy=numpy, onnxruntime=ort,
                tract=lock[1].split('"')[0] if len(lock) > 1 else 'unknown', python=platform.python_version(),
                cpu=cpu, cores=len(os.sched_getaffinity(0)), load=os.getloadavg()[0], system=platform.platform())


class Case:
    """Contestants by name, each a function that gives its figures by row: {row: value}."""
    def __init__(self, title, unit, ours, higher_is_better):
        self.title, self.unit, self.ours, self.higher = title, unit, ours, higher_is_better
        self.contestants, self.pairs, self.rounds, self.difference = {}, None, [], None

    def run(self, rounds):
        names = list(self.contestants)
        for r in range(rounds):
            figures = {}
            for name in names[r % len(names):] + names[:r % len(names)]:
                print('%s, round %d of %d: %s' % (self.title, r + 1, rounds, name), file=sys.stderr)
                figures[name] = self.contestants[name]()
            self.rounds.append(figures)

    def values(self, name, row):
        return [f[name][row] for f in self.rounds]

    def ratios(self, our, peer, row):
        pairs = zip(self.values(our, row), self.values(peer, row))
        return [a / b if self.higher else b / a for a, b in pairs]

    def summary(self):
        rows = []
        for row in self.rounds[0][self.ours[0]]:
            cells = {name: median(self.values(name, row)) for name in self.contestants}
            ratios = {}
            for our, peer in self.pairs or [(our, peer) for our in self.ours for peer in self.contestants if peer not in self.ours]:
                values = self.ratios(our, peer, row)
                ratios['%s / %s' % (our, peer)] = dict(median=median(values), low=min(values), high=max(values))
            rows.append(dict(row=row, medians=cells, ratios=ratios))
        return rows

    def markdown(self):
        rows = self.summary()
        number = (lambda v: '%.0f' % v) if self.higher else (lambda v: '%.3f' % v)
        ratio = lambda r: '%.2f (%.2f to %.2f)' % (r['median'], r['low'], r['high'])
        out = ['### %s' % self.title, '', 'Medians of %d rounds, %s:' % (len(self.rounds), self.unit), '']
        out += table([r['row'] for r in rows], {n: [number(r['medians'][n]) for r in rows] for n in self.contestants})
        out += ['', 'How many times as fast, median (lowest to highest):', '']
        out += table([r['row'] for r in rows], {k: [ratio(r['ratios'][k]) for r in rows] for k in rows[0]['ratios']})
        if self.difference is not None:
            out += ['', 'Largest difference to onnxruntime, over the largest output: %.1e' % self.difference]
        return '\n'.join(out) + '\n'


def table(names, columns):
    """A markdown table with a line for every column given, so that it stays narrow."""
    head = ['| | ' + ' | '.join(names) + ' |', '|---' * (1 + len(names)) + '|']
    return head + ['| %s | %s |' % (name, ' | '.join(cells)) for name, cells in columns.items()]


def row(threads):
    return '%d thread%s' % (threads, '' if threads == 1 else 's')


def trap_case(a, python, speed):
    case = Case('Trap step, WideResNet-16-1 with decoder, batch %d' % a.batch, 'pictures/s', ['stemguard'], True)
    common = ['--batch', a.batch, '--reps', a.reps, '--inner', a.inner]

    def ours():
        return {row(t): lines([speed, '--threads', t, *common], t)[0]['img_s'] for t in a.threads}

    def torch(*flags):
        command = [python, PEERS / 'torch_trap.py', 'bench', *common, *flags]
        return lambda: {row(t): lines([*command, '--threads', t], t)[0]['img_s'] for t in a.threads}

    case.contestants = {'stemguard': ours, 'PyTorch': torch(), 'PyTorch channels_last': torch('--channels-last')}
    return case


def gpu_case(a, python, speed, network, batch, inner):
    """Both in one process each, a round; what PyTorch compiles it compiles in every round, untimed."""
    case = Case('Trap step on a GPU, %s with decoder, batch %d' % (network, batch), 'pictures/s', ['stemguard f32', 'stemguard bf16'], True)
    common = ['--network', network, '--batch', batch, '--reps', 5, '--inner', inner]
    one = lambda *command: (lambda: {'batch %d' % batch: lines([*command, *common], None)[0]['img_s']})
    torch = lambda way: one(python, PEERS / 'torch_gpu_bench.py', '--way', way)
    case.contestants = {'stemguard f32': one(speed, '--device', 'cuda'), 'stemguard bf16': one(speed, '--device', 'cuda-bf16'),
                        'PyTorch eager': torch('eager'), 'PyTorch channels_last bf16': torch('channels_last_bf16'),
                        'PyTorch compiled': torch('compiled')}
    return case


def replace_case(a, python, stemguard, scratch):
    """Pictures/s over 100 epochs. The time of an epoch and the time that does not grow with epochs (cached features) are
    measured apart, in short runs, and put together. Of the cached passes over mixed pictures one is measured, and counted for
    every view."""
    title = 'Replacing the head: %d epochs of %d pictures, batch 64' % (EPOCHS, PICTURES)
    case = Case(title, 'pictures/s', ['stemguard features', 'stemguard mixed', 'stemguard pictures'], True)
    holdout = scratch / 'holdout.npz'
    make = ('import numpy as np; n = %d; x = np.random.RandomState(0).randint(0, 256, (n, 32, 32, 3)).astype(np.uint8); '
            'np.savez(%r, x=x, y=(np.arange(n) %% 10).astype(np.int64))' % (PICTURES, str(holdout)))
    output([python, '-c', make])

    def whole(fixed, epoch):
        return EPOCHS * PICTURES / (fixed + EPOCHS * epoch)

    def ours(space):
        def seconds(epochs, threads):
            views = {'features': ['--views', VIEWS], 'mixed': ['--views', 1], 'pictures': []}[space]
            command = [stemguard, 'replace', ROOT / 'testdata' / 'stem.onnx', '--holdout', 'npz:%s' % holdout, '--space', space,
                       *views, '--epochs', epochs, '--threads', threads, '--json', '--out', scratch / 'defended.sgm']
            return lines(command, threads)[0]['seconds']

        def figures(threads):
            short, long = seconds(1, threads), seconds(1 + a.epochs, threads)
            # On a busy machine the short run can take longer than the long one.
            epoch = (long - short) / a.epochs if long > short else long / (1 + a.epochs)
            return whole(max(short - epoch, 0) * (VIEWS if space == 'mixed' else 1), epoch)
        return lambda: {row(t): figures(t) for t in a.threads}

    def torch(space, *flags):
        def figures(threads):
            command = [python, PEERS / 'torch_replace_bench.py', '--space', space, '--epochs', a.epochs, '--pictures', PICTURES,
                       '--threads', threads, *flags]
            line = lines(command, threads)[0]
            return whole(line['fixed_seconds'], line['epoch_seconds'])
        return lambda: {row(t): figures(t) for t in a.threads}

    case.contestants = {'stemguard features': ours('features'), 'stemguard mixed': ours('mixed'),
                        'stemguard pictures': ours('pictures'),
                        'PyTorch pictures': torch('pictures'), 'PyTorch pictures channels_last': torch('pictures', '--channels-last'),
                        'PyTorch features': torch('features')}
    # Like with like, and what is cached beside the published way.
    case.pairs = [('stemguard pictures', 'PyTorch pictures'), ('stemguard pictures', 'PyTorch pictures channels_last'),
                  ('stemguard mixed', 'PyTorch pictures'), ('stemguard mixed', 'PyTorch pictures channels_last'),
                  ('stemguard features', 'PyTorch features'), ('stemguard features', 'PyTorch pictures')]
    return case


def infer_case(a, python, stemguard, path, title, batches):
    """Outputs are compared before anything is timed. `native, AVX2` is the same program with AVX-512 masked off."""
    case = Case(title, 'ms a picture', ['native', 'native, AVX2'], False)
    with tempfile.TemporaryDirectory() as scratch:
        x, y = Path(scratch) / 'x.npy', Path(scratch) / 'y.npy'
        check = [python, PEERS / 'ort_bench.py', path, '--pictures', x]
        output([*check, '--make'])
        output([stemguard, 'run', path, '--backend', 'native', '--input', x, '--output', y])
        case.difference = lines([*check, '--compare', y], 1)[0]['difference']

    def figures(command):
        found = {}
        for t in a.threads:
            for line in lines([*command, '--batch', batches, '--threads', t, '--rounds', a.infer_rounds], t):
                found['batch %d, %s' % (line['batch'], row(t))] = line['median_ms_per_image']
        return found

    ours = lambda backend, *flags: (lambda: figures([stemguard, 'bench', path, '--backend', backend, '--json', *flags]))
    case.contestants = {'native': ours('native'), 'onnxruntime': lambda: figures([python, PEERS / 'ort_bench.py', path]),
                        'tract': ours('tract')}
    if 'avx512' in a.isas:
        case.contestants['native, AVX2'] = ours('native', '--isa', 'avx2')
    else:
        case.ours.pop()
    return case


def main(a):
    python, (speed, stemguard) = peer_python(a.python), build(a.binaries)
    told = versions(python)
    flags = open('/proc/cpuinfo').read().split() if os.path.exists('/proc/cpuinfo') else []
    a.isas = ['avx512'] if 'avx512f' in flags else []
    print('\n'.join('- %s: %s' % pair for pair in told.items()) + '\n', flush=True)
    report = dict(versions=told, settings={k: v for k, v in vars(a).items() if k not in ['json', 'python']}, cases=[])
    with tempfile.TemporaryDirectory() as scratch:
        cases = []
        if 'trap' in a.cases: cases.append(lambda: trap_case(a, python, speed))
        if 'gpu' in a.cases:
            cases += [lambda: gpu_case(a, python, speed, 'wrn-16-1', 256, 100), lambda: gpu_case(a, python, speed, 'resnet-34', 128, 10)]
        if 'replace' in a.cases: cases.append(lambda: replace_case(a, python, stemguard, Path(scratch)))
        if 'infer' in a.cases:
            cases += [lambda m=m: infer_case(a, python, stemguard, ROOT / 'testdata' / m, 'Inference of testdata/%s' % m, '1,64')
                      for m in ['stem.onnx', 'full.onnx']]
        if 'vision' in a.cases:
            output([python, PEERS / 'make_vision.py', scratch])
            cases += [lambda m=m: infer_case(a, python, stemguard, Path(scratch) / (m + '.onnx'), 'Inference of %s, 224 px' % m, '1')
                      for m in VISION]
        for make in cases:
            case = make()
            case.run(a.rounds)
            print(case.markdown(), flush=True)
            report['cases'].append(dict(title=case.title, unit=case.unit, difference=case.difference,
                                        rows=case.summary(), rounds=case.rounds))
    if a.json:
        Path(a.json).write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    def several(kind, allowed=None):
        def parse(text):
            values = [kind(v) for v in text.split(',')]
            if any(v not in allowed if allowed else v < 1 for v in values):
                raise argparse.ArgumentTypeError(text)
            return values
        return parse

    def count(text):
        if int(text) < 1: raise argparse.ArgumentTypeError('at least 1')
        return int(text)

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--cases', type=several(str, ['trap', 'replace', 'infer', 'vision', 'gpu']), default=['trap', 'replace', 'infer', 'vision'])
    p.add_argument('--rounds', type=count, default=5, help='rounds of every case')
    p.add_argument('--threads', type=several(int), default=[1, 2])
    p.add_argument('--batch', type=count, default=256, help='pictures of a trap step')
    p.add_argument('--reps', type=count, default=3, help='timed repetitions of a trap contestant in a round')
    p.add_argument('--inner', type=count, default=3, help='trap steps of a repetition')
    p.add_argument('--epochs', type=count, default=5, help='epochs that replace is timed over, of %d' % EPOCHS)
    p.add_argument('--infer-rounds', type=count, default=30, help='batches of an inference case in a round')
    p.add_argument('--python', default=os.environ.get('PYTHON'), help='of the peers [default: $PYTHON]')
    p.add_argument('--binaries', metavar='DIR', help='holds trap_speed and stemguard, instead of building them')
    p.add_argument('--json', metavar='FILE', help='write every figure here')
    main(p.parse_args())
