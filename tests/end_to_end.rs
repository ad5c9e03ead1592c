//! The whole chain on procedural pictures, small: from data to a defended model in both formats, resumed runs, refusals.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;
use stemguard_runtime::artifact::{AlignedBytes, Artifact, ArtifactParts, to_vec};
use stemguard_runtime::data::{LoadOptions, Part, load_part};
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::onnx::{Model, TractModel};
use stemguard_runtime::quantise::{calibrate, quantise};
use stemguard_runtime::session::Session;
use stemguard_trainer::attack::{AttackKind, Truth};
use stemguard_trainer::config::{Crop, RunConfig};
use stemguard_trainer::defend::Replacement;
use stemguard_trainer::engine::{Device, Engine as _};
use stemguard_trainer::error::Failure;
use stemguard_trainer::evaluate::{Evaluation, evaluate_engine};
use stemguard_trainer::packed::measure;
use stemguard_trainer::prepare::prepare;
use stemguard_trainer::purify::{Mode, Purification, purify};
use stemguard_trainer::run::{Record, RunDir};
use stemguard_trainer::trap::{Event, restore, train};
use stemguard_trainer::{chain, defend, summary, sweep};

/// Native and tract, relative to the largest logit.
const LOGITS: f32 = 1e-4;

fn config(epochs: u32) -> RunConfig {
    let mut c = RunConfig::published("signs:400".into());
    c.attack.kind = AttackKind::BadnetGrid;
    c.holdout = 0.2;
    c.epochs = epochs;
    c.batch = 32;
    c.every = 1;
    c
}

fn silent() -> impl FnMut(Event<'_>) {
    |_| {}
}

#[test]
fn the_chain_ends_in_a_defended_model_that_every_engine_runs() {
    let dir = tempfile::tempdir().expect("a directory");
    let kernels = Simd::new(2);
    let c = config(3);
    let mut how = Replacement::cached(c.flip, c.seed);
    how.settings.epochs = 5;
    how.settings.batch = 16;
    let p = Purification { epochs: 2, ..Purification::default() };
    let summary = chain::run(&c, &how, &p, dir.path(), false, Device::Cpu, &kernels, &mut |_| {}).expect("the chain");
    for share in [summary.baseline.acc, summary.trapped.asr, summary.control.acc, summary.defended.ra] {
        assert!((0.0..=1.0).contains(&share), "{share}");
    }
    let run = dir.path().join("trap");
    for file in ["run.json", "split.json", "truth.json", "holdout.npz", "metrics.jsonl", "checkpoint.safetensors"] {
        assert!(run.join(file).is_file(), "{file}");
    }
    let truth = Truth::read(&run.join("truth.json")).expect("truth");
    assert_eq!(truth.poisoned.len(), truth.requested);

    let bytes = AlignedBytes::from_file(run.join("defended.sgm")).expect("defended.sgm");
    let artifact = Artifact::new_checked(&bytes).expect("a sound artifact");
    assert_eq!(artifact.labels().count(), 10);
    let (tripwire, alarms) = (artifact.tripwire().expect("the trapped head"), summary.tripwire.expect("its figures"));
    assert_eq!((tripwire.threshold, tripwire.false_positive_rate), (alarms.threshold, alarms.rate));
    assert!([alarms.true_positives, alarms.false_positives].iter().all(|v| (0.0..=1.0).contains(v)));
    let session = Session::of_artifact(&artifact.parts(), kernels.clone()).expect("a session");
    let spec = "signs:100@test".parse().expect("a specification");
    let pictures = load_part(&spec, &LoadOptions { size: None, seed: 9 }, Part::Test).expect("pictures");
    let len = session.input().len();
    let mut x = vec![0.0; 4 * len];
    pictures.to_f32(&[0, 1, 2, 3], &mut x).expect("lengths");
    let mut logits = vec![0.0; 4 * 10];
    session.infer(&x, &mut logits).expect("inference");

    let model = Model::from_file(run.join("defended.onnx")).expect("defended.onnx");
    let tract = TractModel::new(&model, None).expect("tract takes it");
    let mut state = tract.state().expect("a state");
    for (x, want) in x.chunks_exact(len).zip(logits.chunks_exact(10)) {
        let mut nchw = vec![0.0; len];
        for (p, pixel) in x.chunks_exact(3).enumerate() {
            for (c, v) in pixel.iter().enumerate() {
                nchw[c * len / 3 + p] = *v;
            }
        }
        let mut got = vec![0.0; 10];
        state.run(&nchw, &mut got).expect("tract runs it");
        let top = want.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
        assert_eq!(got.len(), want.len());
        for (a, b) in got.iter().zip(want) {
            assert!((a - b).abs() <= LOGITS * top, "{a} and {b}");
        }
    }

    // Packed in 8 bits the model still is what it was, clean and triggered: within 5 points on these few pictures.
    let data = prepare(&c, &kernels, None, &mut |_, _| {}).expect("data");
    let parts = artifact.parts();
    let net = parts.stem.f32().expect("an f32 stem");
    let calibration = calibrate(&net, &kernels, &defend::to_f32(data.holdout.pictures())).expect("calibrated");
    let small = quantise(&net, &calibration).expect("8 bits");
    let file = dir.path().join("small.sgm");
    let bytes = to_vec(&ArtifactParts { stem: small.as_net().into(), ..parts }).expect("an artifact");
    std::fs::write(&file, bytes).expect("written");
    let [wide, small] = [&run.join("defended.sgm"), &file].map(|f| measure(f, &data.test, &kernels).expect("measured"));
    assert_eq!((wide.precision, small.precision), ("f32", "int8"));
    let recorded = RunDir::open(&run).and_then(|(dir, _)| dir.results()).expect("results");
    assert!(recorded.stages.iter().any(|s| s.name == "defended" && s.evaluation == wide.evaluation));
    for (a, b) in [
        (wide.evaluation.acc, small.evaluation.acc),
        (wide.evaluation.asr, small.evaluation.asr),
        (wide.evaluation.ra, small.evaluation.ra),
    ] {
        assert!((a - b).abs() <= 0.05, "{a} and {b}");
    }

    let (run, record) = RunDir::open(&run).expect("the run");
    let (baseline, _) = RunDir::open(&dir.path().join("baseline")).expect("the baseline");
    let data = summary::collect(&run, &record, Some(&baseline), &kernels).expect("a report");
    let names: Vec<&str> = data.stages.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["baseline", "control", "trapped", "defended", "purified"]);
    assert!(data.notes.iter().any(|note| note.starts_with("The tripwire of the defended model: ")), "{:?}", data.notes);
    let page = stemguard_trainer::report::render(&data);
    assert!(page.contains("badnet-grid") && !page.contains("http://") && page.contains("</html>"));
}

#[test]
fn a_resumed_run_has_the_bits_of_an_unbroken_one_on_any_number_of_threads() {
    let dir = tempfile::tempdir().expect("a directory");
    let c = config(3);
    let data = prepare(&c, &Simd::new(1), None, &mut |_, _| {}).expect("data");
    let whole = dir.path().join("whole");
    train(&c, &data, &whole, false, Device::Cpu, &Simd::new(1), &mut silent()).expect("unbroken");
    let broken = dir.path().join("broken");
    // Stops in the middle of the second epoch, as a kill would: nothing of that epoch is kept.
    let stop = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        train(&c, &data, &broken, false, Device::Cpu, &Simd::new(2), &mut |e| {
            assert!(!matches!(e, Event::Step { epoch: 2, done: 96.., .. }), "killed");
        })
    }));
    assert!(stop.is_err());
    let again = train(&c, &data, &broken, false, Device::Cpu, &Simd::new(2), &mut silent());
    assert!(matches!(again, Err(Failure::Input(m)) if m.contains("--resume")));
    train(&c, &data, &broken, true, Device::Cpu, &Simd::new(2), &mut silent()).expect("resumed");
    for file in ["checkpoint.safetensors", "stem.onnx", "trapped.onnx", "split.json", "truth.json", "holdout.npz"] {
        let read = |d: &Path| std::fs::read(d.join(file)).expect("a file");
        assert!(read(&whole) == read(&broken), "{file} differs");
    }
    let other = train(&RunConfig { mse: 5.0, ..c }, &data, &whole, true, Device::Cpu, &Simd::new(1), &mut silent());
    assert!(matches!(other, Err(Failure::Input(m)) if m.contains("another run")));
}

#[test]
fn a_guarded_run_that_is_resumed_has_the_same_bits_and_leaves_clean_data_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let guarded = RunConfig { guard: Some(2), ..config(4) };
    let data = prepare(&guarded, &Simd::new(1), None, &mut |_, _| {}).expect("data");
    let read = |run: &str, file: &str| std::fs::read(dir.path().join(run).join(file)).expect("a file");
    let verdicts = std::cell::Cell::new(0);
    let mut counting = |e: Event<'_>| verdicts.set(verdicts.get() + usize::from(matches!(e, Event::Guard(_))));
    let kernels = Simd::new(2);
    train(&guarded, &data, &dir.path().join("whole"), false, Device::Cpu, &kernels, &mut counting).expect("unbroken");
    assert_eq!(verdicts.get(), 1);
    // Stopped after the guard has judged: it judges the same again (these few pictures it leaves alone).
    let broken = dir.path().join("broken");
    let stop = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        train(&guarded, &data, &broken, false, Device::Cpu, &kernels, &mut |e| {
            assert!(!matches!(e, Event::Step { epoch: 4, .. }), "killed");
        })
    }));
    assert!(stop.is_err());
    train(&guarded, &data, &broken, true, Device::Cpu, &kernels, &mut silent()).expect("resumed");
    for file in ["checkpoint.safetensors", "trapped.onnx", "guard.json"] {
        assert!(read("whole", file) == read("broken", file), "{file} differs");
    }

    // Without an attack nobody is accused, and the run is the unguarded one.
    let clean = |guard| {
        let mut c = RunConfig { guard, ..config(4) };
        c.attack.kind = AttackKind::None;
        c
    };
    let data = prepare(&clean(None), &kernels, None, &mut |_, _| {}).expect("data");
    for (name, guard) in [("clean", Some(2)), ("plain", None)] {
        train(&clean(guard), &data, &dir.path().join(name), false, Device::Cpu, &kernels, &mut silent())
            .expect("trained");
    }
    assert!(read("clean", "trapped.onnx") == read("plain", "trapped.onnx"));
}

#[test]
fn the_audit_accuses_what_was_poisoned_and_purification_removes_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let kernels = Simd::new(2);
    let mut c =
        RunConfig { epochs: 8, batch: 16, every: 8, crop: Crop::None, ..RunConfig::published("signs:2000".into()) };
    c.attack.kind = AttackKind::BadnetGrid;
    let mut how = Replacement::cached(c.flip, c.seed);
    (how.settings.epochs, how.settings.batch) = (60, 32);
    let data = prepare(&c, &kernels, None, &mut |_, _| {}).expect("data");
    let mut trapped =
        train(&c, &data, &dir.path().join("trap"), false, Device::Cpu, &kernels, &mut silent()).expect("trained");
    assert!(trapped.evaluation.asr >= 0.8, "the backdoor is planted: {}", trapped.evaluation.asr);
    // The guard keeps it out, of the head as well.
    let guarded = RunConfig { guard: Some(3), ..c.clone() };
    let guarded = train(&guarded, &data, &dir.path().join("guarded"), false, Device::Cpu, &kernels, &mut silent())
        .expect("trained");
    let Evaluation { asr, chance, .. } = guarded.evaluation;
    assert!(asr - chance <= 0.1, "guarded, {asr} at a chance of {chance}");
    let (run, engine) = (&trapped.dir, &mut trapped.engine);
    let examined = chain::examine(run, &c, &data, engine, &how, Device::Cpu, &kernels, &mut |_| {}).expect("examined");
    let (audit, state) = (&examined.found, engine.state().expect("a state"));
    let summary = audit.summary(Some(&data.truth));
    let named: Vec<u32> = summary.classes.iter().filter(|c| c.suspected).map(|c| c.class).collect();
    assert_eq!(named, [c.attack.target]);
    let found = summary.measures.expect("the truth is known");
    assert!(found.recall >= 0.85 && found.false_positives <= 0.01, "{found:?}");
    let purified = |mode: Mode| {
        let p = Purification { epochs: 4, mode, rounds: mode.default_rounds(), ..Purification::default() };
        let done = purify(run, &c, &data, &state, audit, &how, &p, false, Device::Cpu, &kernels, &mut |_| {});
        let done = done.expect("purified");
        let first = &done.rounds[0];
        assert_eq!((first.accused, done.rounds.len()), (summary.accused, p.rounds as usize), "{mode:?}");
        assert!(done.rounds.iter().all(|r| r.inoculated > 0), "{mode:?}");
        done
    };
    // Whatever becomes of the accused, the backdoor goes, and each way ends in a model of its own.
    let [relabelled, dropped, (end, model)] = [Mode::Relabel, Mode::Drop, Mode::Unlearn].map(|mode| {
        let done = purified(mode);
        let left = done.evaluation.asr - done.evaluation.chance;
        assert!(left <= 0.05, "{mode:?}: {left} is left of the backdoor");
        (done, std::fs::read(run.file("purified.onnx")).expect("a model"))
    });
    assert!(model != dropped.1 && model != relabelled.1 && dropped.1 != relabelled.1);
    // The purified model ships with its own tripwire.
    let bytes = AlignedBytes::from_file(run.file("purified.sgm")).expect("purified.sgm");
    let shipped = Artifact::new_checked(&bytes).expect("an artifact").tripwire();
    assert_eq!(shipped.is_some(), end.tripwire.alarms.is_some());
    assert!(end.tripwire.found.is_some_and(|share| share >= 0.5), "{:?}", end.tripwire);
}

/// The cells of a plan, written to a file.
fn cells_of(file: &Path, plan: &str) -> Vec<sweep::Cell> {
    std::fs::write(file, plan).expect("written");
    sweep::Plan::read(file).and_then(|p| p.cells()).expect("cells")
}

#[test]
fn a_sweep_fills_its_cells_with_their_ceiling_and_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("plan.toml");
    let plan = "data = 'signs:400'\nattacks = ['badnet-grid', 'smooth']\nceiling = true\n[settings.short]\nepochs = 1\nbatch = 32\n\
                holdout = 0.2\nreplace_epochs = 2\nreplace_batch = 16\nviews = 1\npurify_epochs = 1\n";
    let cells = cells_of(&file, plan);
    let jobs = sweep::jobs(&cells);
    let names: Vec<&str> = jobs.iter().map(sweep::Job::name).collect();
    assert_eq!(names, ["badnet-grid-0.1-short-0", "ceiling-0.1-short-0", "smooth-0.1-short-0"]);
    let workers = |n: usize| vec![sweep::Worker { device: Device::Cpu, kernels: Simd::new(1) }; n];

    // One after the other, and what fails ends it.
    let out = dir.path().join("alone");
    std::fs::create_dir(&out).expect("made");
    std::fs::write(out.join(names[1]), "in the way").expect("written");
    assert!(sweep::row(&cells[0], &out).expect("no file yet").is_none());
    let failure = sweep::run(&jobs, &out, &workers(1), &|_, _, _| {}).expect_err("not a directory");
    assert!(matches!(&failure, Failure::Input(m) if m.contains(names[1])), "{failure}");
    assert!(out.join(names[0]).exists() && !out.join(names[2]).exists());
    std::fs::remove_file(out.join(names[1])).expect("removed");
    let begun = Mutex::new(BTreeSet::new());
    let done = Mutex::new(Vec::new());
    let tell = |worker: usize, job: usize, told: sweep::Told<'_>| {
        assert_eq!(worker, 0);
        begun.lock().expect("alive").insert(job);
        if let sweep::Told::Done(seconds) = told {
            assert!(seconds > 0.0);
            done.lock().expect("alive").push(job);
        }
    };
    sweep::run(&jobs, &out, &workers(1), &tell).expect("the rest");
    assert_eq!(*begun.lock().expect("alive"), BTreeSet::from([1, 2]), "the first is done");
    assert_eq!(*done.lock().expect("alive"), [1, 2]);

    // All at a time: the same figures.
    let together = dir.path().join("together");
    let begun = Mutex::new(BTreeSet::new());
    let tell = |worker: usize, job: usize, _: sweep::Told<'_>| {
        begun.lock().expect("alive").insert((job, worker));
    };
    sweep::run(&jobs, &together, &workers(3), &tell).expect("all");
    let begun = begun.into_inner().expect("alive");
    let of = |part: fn(&(usize, usize)) -> usize| begun.iter().map(part).collect::<BTreeSet<_>>();
    assert_eq!((begun.len(), of(|b| b.0), of(|b| b.1)), (3, BTreeSet::from([0, 1, 2]), BTreeSet::from([0, 1, 2])));
    let rows = |out: &Path| -> Vec<sweep::Row> {
        cells.iter().map(|c| sweep::row(c, out).expect("files").expect("a whole cell")).collect()
    };
    let row = rows(&out);
    assert_eq!(row, rows(&together));

    let (ceiling, ceiling_record) = RunDir::open(&out.join(names[1])).expect("a run");
    let (baseline, record) = RunDir::open(&out.join(names[0]).join("baseline")).expect("a run");
    let counts = ceiling_record.counts;
    assert_eq!((counts.poisoned, counts.train), (0, record.counts.train - record.counts.poisoned));
    let results = ceiling.results().expect("results");
    assert_eq!(results.stages[0].name, "ceiling");
    // It was shown the triggers of both; those of its own attack while it was trained, too.
    let reached = &results.stages[0].evaluation;
    let (own, other) = (row[0].ceiling.expect("trained"), row[1].ceiling.expect("trained"));
    assert_eq!((own.acc, own.asr, own.ra), (reached.acc, Some(reached.asr), Some(reached.ra)));
    assert!(reached.acc > 0.0 && reached.acc <= 1.0 && other.acc == own.acc && other.chance == own.chance);
    let data_of = |c: &RunConfig| prepare(c, &Simd::new(1), None, &mut |_, _| {}).expect("data");
    let (trained_on, shown) = (data_of(&ceiling_record.config), data_of(&cells[1].config).test);
    let (mut engine, _) = restore(&ceiling, &ceiling_record, &trained_on, &Simd::new(1)).expect("a checkpoint");
    let wanted = evaluate_engine(&shown, &mut engine).expect("figures");
    assert_eq!((other.asr, other.ra), (Some(wanted.asr), Some(wanted.ra)));
    assert_ne!((other.asr, other.ra), (own.asr, own.ra));
    assert_eq!(baseline.results().expect("results").stages[0].name, "trained");
    sweep::run(&jobs, &out, &workers(1), &|_, _, _| panic!("nothing is left")).expect("nothing left");
    assert!(sweep::table(&row).contains("| badnet-grid | 0.1 | short | 1 |"));
    // Sweeps of older versions showed it none.
    std::fs::remove_file(ceiling.file("triggers.json")).expect("removed");
    let unshown = rows(&out)[1].ceiling.expect("trained");
    assert_eq!((unshown.acc, unshown.asr, unshown.ra), (other.acc, None, None));
    // Whatever they were trained with: nothing of it is trained again.
    ceiling.write_json("run.json", &Record { kernels: "another".into(), ..ceiling_record }).expect("written");
    assert_eq!(trained(&out, &jobs), BTreeSet::new(), "what is trained stays");

    // What was purified otherwise is not passed off as this.
    let others = cells_of(&file, &format!("{plan}inoculate = 0.5\n"));
    for found in
        [sweep::row(&others[0], &out).map(drop), sweep::run(&sweep::jobs(&others), &out, &workers(1), &|_, _, _| {})]
    {
        assert!(matches!(&found, Err(Failure::Input(m)) if m.contains("cell.json")), "{found:?}");
    }
    // Nor what was trained otherwise.
    let others = cells_of(&file, &plan.replace("epochs = 1\nbatch", "epochs = 2\nbatch"));
    let found = sweep::row(&others[0], &out);
    assert!(matches!(&found, Err(Failure::Input(m)) if m.contains("another run")), "{found:?}");
    assert_eq!(row, rows(&out));
}

/// Runs jobs; which of them trained what.
fn trained(out: &Path, jobs: &[sweep::Job<'_>]) -> BTreeSet<(usize, &'static str)> {
    let workers = [sweep::Worker { device: Device::Cpu, kernels: Simd::new(2) }];
    let stages = Mutex::new(BTreeSet::new());
    let tell = |_: usize, job: usize, told: sweep::Told<'_>| {
        if let sweep::Told::Stage(chain::Told::Training(stage, _)) = told {
            stages.lock().expect("alive").insert((job, stage));
        }
    };
    sweep::run(jobs, out, &workers, &tell).expect("all cells");
    stages.into_inner().expect("alive")
}

#[test]
fn cells_that_train_alike_share_what_one_has_trained() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("plan.toml");
    let base =
        "epochs = 1\nbatch = 32\nholdout = 0.2\nreplace_epochs = 2\nreplace_batch = 16\nviews = 1\npurify_epochs = 1\n";
    let settings = "[settings.a]\n[settings.b]\npurify_mode = 'drop'\n[settings.c]\nmse = 0.0\ntv = 0.0\n";
    let cells = cells_of(&file, &format!("data = 'signs:400'\nattacks = ['cl']\n[base]\n{base}{settings}"));
    let jobs = sweep::jobs(&cells);
    let (shared, alone) = (dir.path().join("shared"), dir.path().join("alone"));
    let found = trained(&shared, &jobs);
    let both = |job| BTreeSet::from([(job, "baseline"), (job, "trap"), (job, "purify")]);
    assert_eq!(found, &(&both(0) | &both(2)) | &BTreeSet::from([(1, "purify")]));
    // What is shared is what the cell would have trained itself.
    assert_eq!(trained(&alone, &jobs[1..2]), both(0));
    let row = |out: &Path| sweep::row(&cells[1], out).expect("files").expect("a whole cell");
    assert_eq!(row(&shared), row(&alone));
    for file in ["baseline/trained.onnx", "trap/trapped.onnx", "trap/fitting.npy", "trap/purified.onnx"] {
        let read = |out: &Path| std::fs::read(out.join(&cells[1].name).join(file)).expect("a file");
        assert!(read(&shared) == read(&alone), "{file} differs");
    }
}

#[test]
fn a_trap_whose_guard_accused_nobody_is_also_the_one_without_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("plan.toml");
    let base =
        "epochs = 3\nbatch = 32\nholdout = 0.2\nreplace_epochs = 2\nreplace_batch = 16\nviews = 1\npurify = false\n";
    let settings = "[settings.guarded]\nguard = 2\n[settings.published]\nloss = 'published'\n";
    let cells = cells_of(&file, &format!("data = 'signs:400'\nattacks = ['none']\n[base]\n{base}{settings}"));
    let jobs = sweep::jobs(&cells);
    let (shared, alone) = (dir.path().join("shared"), dir.path().join("alone"));
    assert_eq!(trained(&shared, &jobs), BTreeSet::from([(0, "baseline"), (0, "trap")]));
    assert_eq!(trained(&alone, &jobs[1..]), BTreeSet::from([(0, "baseline"), (0, "trap")]));

    let row = |out: &Path| sweep::row(&cells[1], out).expect("files").expect("a whole cell");
    assert_eq!(row(&shared), row(&alone));
    assert_eq!((row(&shared).purified, row(&shared).setting.as_str()), (None, "published"));
    let of = |out: &Path| RunDir::open(&out.join(&cells[1].name).join("trap")).expect("a run");
    assert_eq!(of(&shared).1, of(&alone).1);
    assert_eq!(of(&shared).1.config.guard, None);
    for file in ["checkpoint.safetensors", "trapped.onnx", "fitting.npy", "audit.json", "tripwire.json"] {
        let read = |out: &Path| std::fs::read(of(out).0.file(file)).expect("a file");
        assert!(read(&shared) == read(&alone), "{file} differs");
    }
    let losses = |out: &Path| -> Vec<_> {
        of(out).0.metrics().expect("lines").iter().map(|l| (l.epoch, l.losses, l.unlearned, l.acc)).collect()
    };
    assert_eq!(losses(&shared), losses(&alone));
    assert!(!of(&shared).0.file("guard.json").exists());
}
