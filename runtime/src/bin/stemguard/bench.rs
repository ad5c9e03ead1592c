//! `bench`: milliseconds a picture.

use crate::fail::Fail;
use crate::model::Loaded;
use crate::runner::{Backend, Runner};
use crate::ui;
use serde::Serialize;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use stemguard_runtime::kernels::isa::Isa;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::rng::Rng;

/// Every case warms up at least so long, and at least twice.
const WARM_UP: Duration = Duration::from_millis(200);
/// The most bytes of pictures or outputs of one batch: 1 GiB.
const MAX_BATCH_BYTES: u64 = 1 << 30;

/// Measure speed on random pictures.
///
/// Each case is a backend, a batch and a number of threads. After a warm-up, a round runs one batch; the times are those of a
/// round, divided by the batch.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    stemguard bench defended.sgm\n  \
    stemguard bench model.onnx --batch 1,64 --threads 1,2 --backend native,tract --json\n\n\
    JSON, a line a case: {\"backend\", \"batch\", \"threads\", \"median_ms_per_image\", \"p95_ms_per_image\", \
    \"images_per_second\"}.")]
pub(crate) struct Args {
    /// The model: .sgm or .onnx
    model: PathBuf,
    /// Cut an ONNX model at this tensor
    #[arg(long, value_name = "TENSOR")]
    at: Option<String>,
    /// Pictures in a batch
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1,64",
          value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    batch: Vec<u32>,
    /// Threads
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Vec<u16>,
    /// What runs the model [default: native where it lowers, else tract]
    #[arg(long, value_enum, value_name = "BACKEND,..", value_delimiter = ',')]
    backend: Vec<Backend>,
    /// Rounds of each case
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rounds: u32,
    /// Instruction set of the native backend; auto is the widest this processor has
    #[arg(long, value_enum, default_value = "auto")]
    isa: IsaChoice,
    /// Print one JSON object a line instead of text
    #[arg(long)]
    json: bool,
}

/// An instruction set as a flag names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum IsaChoice {
    Auto,
    Avx512,
    Avx2,
    Neon,
    Portable,
}

/// One case.
#[derive(Serialize)]
struct Case {
    backend: &'static str,
    batch: usize,
    threads: usize,
    median_ms_per_image: f64,
    p95_ms_per_image: f64,
    images_per_second: f64,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Fail> {
    let isa = match args.isa {
        IsaChoice::Auto => Isa::detect(),
        IsaChoice::Avx512 => Isa::Avx512,
        IsaChoice::Avx2 => Isa::Avx2,
        IsaChoice::Neon => Isa::Neon,
        IsaChoice::Portable => Isa::Portable,
    };
    let lacks = || Fail::input(format!("--isa: this processor does not have {}", isa.name()));
    let kernels = |threads: u16| Simd::with_isa(isa, threads.into()).ok_or_else(lacks);
    kernels(1)?;
    let model = Loaded::open(&args.model, args.at.as_deref())?;
    let backends = match &args.backend[..] {
        [] => {
            let best = Runner::best(&model, &Simd::new(1))?;
            best.tell_fallback(&model);
            vec![best.backend()]
        }
        asked => asked.to_vec(),
    };
    if !args.json {
        ui::line(format_args!(
            "{:8} {:>6} {:>7} {:>12} {:>12} {:>12}",
            "backend", "batch", "threads", "median ms", "p95 ms", "images/s"
        ))?;
    }
    for backend in backends {
        for &threads in &args.threads {
            let runner = Runner::on(backend, &model, &kernels(threads)?)?;
            for &batch in &args.batch {
                let case = measure(args, &runner, batch as usize, threads.into())?;
                if args.json {
                    ui::json(&case)?;
                    continue;
                }
                ui::line(format_args!(
                    "{:8} {:>6} {:>7} {:>12.4} {:>12.4} {:>12.1}",
                    case.backend,
                    case.batch,
                    case.threads,
                    case.median_ms_per_image,
                    case.p95_ms_per_image,
                    case.images_per_second
                ))?;
            }
        }
    }
    Ok(())
}

/// Times one case.
fn measure(args: &Args, runner: &Runner<'_>, batch: usize, threads: usize) -> Result<Case, Fail> {
    let (len, to) = (runner.input().len(), runner.output().len());
    if 4 * batch as u64 * len.max(to) as u64 > MAX_BATCH_BYTES {
        return Err(Fail::input(format!("--batch: {batch} pictures of this model take more than 1 GiB")));
    }
    let mut rng = Rng::new(0, 0);
    let x: Vec<f32> = (0..batch * len).map(|_| rng.uniform()).collect();
    let mut y = vec![0.0; batch * to];
    let start = Instant::now();
    for warm in 0.. {
        if warm >= 2 && start.elapsed() >= WARM_UP {
            break;
        }
        runner.run(&x, &mut y)?;
    }
    let mut times = Vec::with_capacity(args.rounds as usize);
    for _ in 0..args.rounds {
        let start = Instant::now();
        runner.run(&x, &mut y)?;
        times.push(1000.0 * start.elapsed().as_secs_f64() / batch as f64);
    }
    let total: f64 = times.iter().sum();
    times.sort_by(f64::total_cmp);
    let (n, at) = (times.len(), |i: usize| times.get(i).copied().unwrap_or(0.0));
    Ok(Case {
        backend: runner.backend().name(),
        batch,
        threads,
        median_ms_per_image: (at((n - 1) / 2) + at(n / 2)) / 2.0,
        p95_ms_per_image: at((95 * n).div_ceil(100).saturating_sub(1)),
        images_per_second: 1000.0 * n as f64 / total.max(1e-9),
    })
}
