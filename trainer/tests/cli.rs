//! The command line: bad input is named in one line with exit code 2 and leaves nothing behind; lists are machine-readable.

use std::path::Path;
use std::process::{Command, Output};

fn trainer(args: &[&str]) -> Output {
    // Where there is a GPU, it is hidden.
    let mut command = Command::new(env!("CARGO_BIN_EXE_stemguard-trainer"));
    command.env("CUDA_VISIBLE_DEVICES", "").args(args).output().expect("the binary starts")
}

#[test]
fn bad_input_gets_one_line_and_exit_code_2() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("run");
    let out = out.to_str().expect("a path");
    let short = dir.path().join("cifar");
    std::fs::create_dir(&short).expect("made");
    for i in 1..=5 {
        std::fs::write(short.join(format!("data_batch_{i}.bin")), vec![0u8; 3000]).expect("written");
    }
    std::fs::write(short.join("test_batch.bin"), vec![0u8; 3073]).expect("written");
    let cifar = format!("cifar10:{}", short.display());
    let full = dir.path().join("full");
    std::fs::create_dir(&full).expect("made");
    std::fs::write(full.join("something"), "else").expect("written");
    let full = full.to_str().expect("a path");
    let plan = |name: &str, rest: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("data = 'signs:200'\nattacks = ['blend']\n{rest}")).expect("written");
        path.to_str().expect("a path").to_owned()
    };
    let (twice, astray) =
        (plan("twice.toml", "seeds = [0, 0]\n"), plan("astray.toml", "[settings.'../a']\nepochs = 1\n"));
    let archive = format!("folder:{}", short.join("test_batch.bin").display());
    let deep = plan(
        "deep.toml",
        "size = [20, 20]\n[base]\nbatch = 16\n[base.architecture]\nfamily = \"resnet\"\ndepth = 34\nsplit = 41\n",
    );
    let long = plan("long.toml", &format!("[settings.{}]\nepochs = 1\n", "a".repeat(240)));
    let bare = plan("bare.toml", "[triggers]\nblend = '/no/trigger.png'\n");
    let far = plan("far.toml", "target = 10\n");
    let [large, new] = ["batch = 500", "batch = 16\nreplace_batch = 40"]
        .map(|base| plan(&format!("{}.toml", base.len()), &format!("[base]\n{base}\n")));
    let cases: &[(&[&str], &str)] = &[
        (&["trap", "--attack", "cl", "--data", "signs:400", "--batch", "500", "--out", out], "--batch"),
        (&["sweep", &twice, "--out", out], "blend-0.1-default-0: is asked for twice"),
        (&["sweep", &astray, "--out", out], "\"../a\""),
        (&["sweep", &bare, "--out", out], "bare.toml: blend-0.1-default-0: cannot read the trigger /no/trigger.png"),
        (&["sweep", &far, "--out", out], "far.toml: blend-0.1-default-0: target: class 10 is not below"),
        (&["sweep", &large, "--out", out], "blend-0.1-base-0: batch: 190 pictures are fewer"),
        (&["sweep", &new, "--out", out], "it takes a smaller replace_batch, or more pictures"),
        (&["trap", "--data", "signs:200", "--depth", "34", "--split", "5", "--out", out], "--split of ResNet-34 is"),
        (&["trap", "--data", "cifar10:/no/such/place", "--out", out], "/no/such/place"),
        (&["trap", "--data", &cifar, "--out", out], "data_batch_1.bin"),
        (&["trap", "--data", "pictures:here", "--out", out], "pictures"),
        (&["trap", "--data", "signs:200", "--attack", "nonesuch", "--out", out], "nonesuch"),
        (&["trap", "--data", "signs:200", "--target", "10", "--out", out], "--target"),
        (&["trap", "--data", "signs:200", "--poison-rate", "1.5", "--out", out], "--poison-rate 1.5"),
        (&["trap", "--data", "signs:200", "--holdout", "0", "--out", out], "--holdout"),
        (&["trap", "--data", "signs:200@train", "--out", out], "signs:200@train: has no test part"),
        (&["trap", "--data", "signs:200", "--holdout-data", "here", "--out", out], "--holdout-data here"),
        (
            &["trap", "--data", "signs:200", "--holdout-data", "signs", "--holdout", "0.1", "--out", out],
            "cannot be used",
        ),
        (
            &[
                "trap",
                "--data",
                "signs:200",
                "--holdout-data",
                "signs:250@test",
                "--batch",
                "16",
                "--purify",
                "--out",
                out,
            ],
            "--replace-batch",
        ),
        (&["trap", "--data", "signs:200", "--batch", "500", "--out", out], "--batch"),
        (&["trap", "--data", "signs:200", "--depth", "17", "--batch", "16", "--out", out], "--depth is 16"),
        (
            &["trap", "--data", "signs:200", "--trigger", "/no/trigger.png", "--attack", "blend", "--out", out],
            "/no/trigger.png",
        ),
        (&["trap", "--data", "signs:200", "--batch", "16", "--out", full], "not empty"),
        (&["train", "--data", "signs:200", "--batch", "16", "--purify", "--out", out], "--purify"),
        (&["train", "--data", "signs:200", "--batch", "16", "--guard", "3", "--out", out], "--guard"),
        (&["trap", "--data", "signs:200", "--batch", "16", "--purify", "--rounds", "9", "--out", out], "--rounds"),
        (
            &["trap", "--data", "signs:200", "--batch", "16", "--purify", "--replace-batch", "1", "--out", out],
            "--replace-batch",
        ),
        (&["trap", "--data", "signs:200", "--purify", "--replace-lr", "-0.1", "--out", out], "--replace-lr: setting"),
        (&["trap", "--data", "signs:200", "--purify", "--replace-epochs", "0", "--out", out], "--replace-epochs"),
        (&["trap", "--data", "signs:200", "--guard", "0", "--out", out], "--guard 0 is not at least 2"),
        (&["trap", "--data", "signs:200", "--lr", "-1", "--out", out], "--lr -1 is not within"),
        (
            &["trap", "--data", "signs:200", "--size", "3x3", "--out", out],
            "--size: WRN-16-1 split 5 for pictures of 3x3",
        ),
        (&["trap", "--data", "signs:1000", "--size", "4096x4096", "--batch", "512", "--out", out], "--batch"),
        (&["trap", "--data", "signs:200", "--batch", "16", "--oracle", "--out", out], "--oracle"),
        (&["trap", "--data", "signs:200", "--loss", "published", "--guard", "3", "--out", out], "--guard"),
        (&["trap", "--data", "signs:200", "--loss", "published", "--guard", "--out", out], "no guard"),
        (
            &["trap", "--data", "signs:200", "--batch", "16", "--purify", "--alarm-fpr", "1.5", "--out", out],
            "--alarm-fpr",
        ),
        (&["trap", "--data", "signs:200", "--rounds", "2", "--out", out], "--rounds: has an effect with --purify only"),
        (&["train", "--data", "signs:200", "--replace-lr", "0.1", "--out", out], "--replace-lr: has an effect with"),
        (&["train", "--data", "signs:200", "--loss", "published", "--out", out], "--loss: is for trap"),
        (
            &["trap", "--data", "signs:200", "--crop", "none", "--shift", "2", "--out", out],
            "--shift: has an effect with --crop shift",
        ),
        (&["replace", full, "--space", "pictures", "--views", "4"], "--views: has no effect"),
        (&["attacks", "--seed", "3"], "--seed: has an effect with --sheet only"),
        (&["trap", "--data", "signs:200", "--size", "30x30", "--batch", "16", "--out", out], "pictures of 30x30"),
        (&["trap", "--data", &archive, "--out", out], "test_batch.bin: not a folder of class folders"),
        (&["sweep", &deep, "--out", out], "ResNet-34 split 41 for pictures of"),
        (&["sweep", &long, "--out", out], "its directory's name has more than 200 bytes"),
        (
            &["trap", "--data", "signs:200", "--batch", "16", "--device", "cuda", "--out", out],
            "--device cuda: no NVIDIA",
        ),
        (&["sweep", "/no/plan.toml", "--device", "tpu", "--out", out], "--device"),
        (&["train", "--data", "signs:200", "--batch", "16", "--precision", "bf16", "--out", out], "--precision"),
        (&["replace", full, "--device", "cuda"], "--device cuda: no NVIDIA"),
        (&["replace", full], "run.json"),
        (&["replace", full, "--alarm-fpr", "often"], "--alarm-fpr"),
        (&["audit", full], "run.json"),
        (&["purify", full, "--purify-epochs", "0"], "--purify-epochs"),
        (&["purify", full, "--inoculate", "2"], "--inoculate"),
        (&["purify", full, "--mode", "relabel", "--rounds", "1"], "mode relabel"),
        (&["purify", "/no/run"], "/no/run"),
        (&["eval", full], "run.json"),
        (&["report", "/no/run"], "/no/run"),
        (&["sweep", "/no/plan.toml", "--out", out], "/no/plan.toml"),
        (&["demo", "--attack", "nonesuch", "--out", out], "nonesuch"),
    ];
    for (args, word) in cases {
        let result = trainer(args);
        let text = String::from_utf8_lossy(&result.stderr).into_owned();
        assert_eq!(result.status.code(), Some(2), "{args:?}: {text}");
        let last = text.lines().last().unwrap_or_default();
        assert!(last.starts_with("stemguard-trainer: "), "{args:?}: {text}");
        assert!(last.contains(word), "{args:?} does not name {word}: {text}");
        assert!(!text.contains("panicked"), "{args:?}: {text}");
        assert!(!Path::new(out).exists(), "{args:?} left something behind");
        assert_eq!(std::fs::read_dir(full).expect("a folder").count(), 1, "{args:?} left something in the wrong place");
    }
}

#[test]
fn the_attacks_are_listed_with_their_sources_and_drawn() {
    let dir = tempfile::tempdir().expect("a directory");
    let sheet = dir.path().join("sheet.png");
    let result = trainer(&["attacks", "--json", "--sheet", sheet.to_str().expect("a path")]);
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    let lines: Vec<serde_json::Value> = String::from_utf8_lossy(&result.stdout)
        .lines()
        .map(|l| serde_json::from_str(l).expect("a JSON object a line"))
        .collect();
    assert!(lines.len() >= 13);
    assert!(lines.iter().all(|l| l["name"].is_string() && l["source"].is_string()));
    assert!(std::fs::metadata(&sheet).expect("a sheet").len() > 1000);
}

#[test]
fn without_a_command_all_of_them_are_listed() {
    let bare = trainer(&[]);
    assert_eq!(bare.status.code(), Some(2));
    let text = String::from_utf8_lossy(&bare.stderr).into_owned();
    assert!(["demo", "purify", "attacks"].iter().all(|command| text.contains(command)), "{text}");
    let version = trainer(&["--version"]);
    assert_eq!((version.status.code(), version.stderr.len()), (Some(0), 0));
}

/// `ulimit -v` is a limit like that of memory: what does not fit is refused, and does not end in an abort.
#[cfg(target_os = "linux")]
#[test]
fn a_limit_of_addresses_counts_as_memory() {
    let home = tempfile::tempdir().expect("a directory");
    let out = home.path().join("run");
    let script = "ulimit -v 1500000; exec \"$0\" train --data signs:6000 --batch 5000 --threads 2 --out \"$1\"";
    let mut shell = Command::new("sh");
    let result = shell.args(["-c", script, env!("CARGO_BIN_EXE_stemguard-trainer")]).arg(&out).output().expect("sh");
    let text = String::from_utf8_lossy(&result.stderr).into_owned();
    assert_eq!(result.status.code(), Some(2), "{text}");
    assert!(text.contains("--batch: a step on 5000 pictures takes more than"), "{text}");
    assert!(!out.exists());
}

#[test]
fn a_trapped_run_is_audited_and_purified() {
    let dir = tempfile::tempdir().expect("a directory");
    let run = dir.path().join("run");
    let run = run.to_str().expect("a path");
    let new = ["--replace-epochs", "3", "--replace-batch", "16", "--views", "2", "--json"];
    let ok = |args: &[&str]| -> Vec<serde_json::Value> {
        let result = trainer(args);
        assert!(result.status.success(), "{args:?}: {}", String::from_utf8_lossy(&result.stderr));
        let text = String::from_utf8_lossy(&result.stdout).into_owned();
        text.lines().map(|l| serde_json::from_str(l).expect("a JSON object a line")).collect()
    };
    ok(&["trap", "--data", "signs:400", "--holdout", "0.2", "--batch", "32", "--epochs", "2", "--out", run, "--json"]);
    // The trapped head stays as a tripwire; at a rate of 1 everything raises its alarm.
    let replaced = ok(&[&["replace", run, "--alarm-fpr", "1"][..], &new].concat());
    let share = |line: &serde_json::Value, key: &str| line["tripwire"][key].as_f64().expect("a share");
    assert_eq!((share(&replaced[0], "true_positives"), share(&replaced[0], "false_positives")), (1.0, 1.0));
    let replaced = ok(&[&["replace", run][..], &new].concat());
    assert!(share(&replaced[0], "false_positives") < 1.0 && share(&replaced[0], "rate") < 0.011);
    // How the head was replaced is on record.
    let record = std::fs::read_to_string(Path::new(run).join("replacement.json")).expect("a record");
    let how: serde_json::Value = serde_json::from_str(&record).expect("JSON");
    assert_eq!((how["settings"]["epochs"].as_u64(), how["settings"]["batch"].as_u64()), (Some(3), Some(16)));
    assert_eq!((&how["space"]["features"]["views"], &how["kind"]), (&2.into(), &"Residual".into()));
    // The packed model gives what the stage reported, whole; a stem alone or another file is refused by name.
    let measured = ok(&["eval", run, "--json"]);
    assert!(["acc", "asr", "ra", "chance", "tripwire"].iter().all(|key| measured[0][key] == replaced[0][key]));
    assert_eq!((&measured[0]["precision"], measured[0]["test"].as_u64()), (&"f32".into(), Some(80)));
    let stem = Path::new(run).join("stem.onnx");
    let refused = trainer(&["eval", run, "--model", stem.to_str().expect("a path")]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("stem.onnx"));
    let version = |file: &str| std::fs::read(Path::new(run).join(file)).expect("a model")[6];
    assert_eq!(version("defended.sgm"), 3);
    let results = std::fs::read_to_string(Path::new(run).join("results.json")).expect("results.json");
    assert!(results.contains("\"true_positives\""), "{results}");
    let audit = ok(&[&["audit", run][..], &new].concat());
    assert_eq!(version("defended.sgm"), 3);
    assert_eq!(audit[0]["pictures"], 320);
    assert_eq!(audit[0]["classes"].as_array().map(Vec::len), Some(10));
    let csv = std::fs::read_to_string(Path::new(run).join("audit.csv")).expect("audit.csv");
    assert_eq!(csv.lines().count(), 321);
    assert!(csv.starts_with("index,training_index,file,label,new_label,"));
    // Suspects know their places in the data set.
    let split = std::fs::read_to_string(Path::new(run).join("split.json")).expect("split.json");
    let split: serde_json::Value = serde_json::from_str(&split).expect("JSON");
    for (i, line) in csv.lines().skip(1).enumerate() {
        assert!(line.starts_with(&format!("{i},{},", split["train"][i])), "{line}");
    }
    assert!(Path::new(run).join("audit.png").is_file());
    // A line a round, then the tripwire, which is in the model where its witness finds half of what it was not taught.
    let model = || std::fs::read(Path::new(run).join("purified.onnx")).expect("a model");
    let mut models = Vec::new();
    for (mode, rounds) in [("unlearn", 1), ("drop", 1), ("relabel", 2)] {
        let told = ok(&[&["purify", run, "--mode", mode, "--purify-epochs", "1"][..], &new].concat());
        assert_eq!((told.len(), &told[rounds - 1]["round"]), (rounds + 1, &rounds.into()), "{told:?}");
        assert!(told[..rounds].iter().all(|l| l["acc"].as_f64().is_some_and(|v| (0.0..=1.0).contains(&v))));
        let (found, alarms) = (&told[rounds]["tripwire"]["found"], &told[rounds]["tripwire"]["alarms"]);
        assert_eq!(alarms.is_object(), found.as_f64().is_some_and(|share| share >= 0.5), "{told:?}");
        assert_eq!(version("purified.sgm"), if alarms.is_object() { 3 } else { 1 });
        models.push(model());
    }
    for file in ["purified.sgm", "purified.onnx", "purified-stem.onnx", "purify.json"] {
        assert!(Path::new(run).join(file).is_file(), "{file}");
    }
    // A head replaced anew has not been audited; and a trapped run is no baseline.
    let stages = || -> Vec<String> {
        let text = std::fs::read_to_string(Path::new(run).join("results.json")).expect("results.json");
        let all: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let names = all["stages"].as_array().expect("a list").iter();
        names.map(|s| s["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(stages(), ["trapped", "defended", "purified"]);
    ok(&[&["replace", run][..], &new].concat());
    assert!(!Path::new(run).join("audit.json").exists() && !Path::new(run).join("tripwire.json").exists());
    assert_eq!(stages(), ["trapped", "defended", "purified"]);
    let refused = trainer(&["report", run, "--baseline", run]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--baseline takes one that `train` wrote"));
    // What is kept of an interrupted purification is gone on from: here all of it.
    let again = [&["purify", run, "--mode", "relabel", "--purify-epochs", "1", "--resume"][..], &new].concat();
    ok(&again);
    assert!(models[2] == model());
    // What is kept of another one is not.
    ok(&[&["purify", run, "--purify-epochs", "1", "--resume"][..], &new].concat());
    assert!(models[0] == model());
    // A second round asks again whom to accuse, unless the first has settled it.
    let rounds = ok(&[&["purify", run, "--rounds", "2", "--purify-epochs", "1"][..], &new].concat());
    let settled = rounds[0]["newly_accused"] == 0 && rounds[0]["readmitted"] == 0;
    assert_eq!(rounds.len() - 1, if settled { 1 } else { 2 }, "{rounds:?}");

    // A path that is not Unicode is as good as any.
    #[cfg(unix)]
    {
        let odd = dir.path().join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"r\xff"));
        std::fs::rename(run, &odd).expect("renamed");
        for command in ["eval", "export", "report"] {
            let mut trainer = Command::new(env!("CARGO_BIN_EXE_stemguard-trainer"));
            let result = trainer.arg(command).arg(&odd).arg("--json").output().expect("the binary starts");
            assert!(result.status.success(), "{command}: {}", String::from_utf8_lossy(&result.stderr));
        }
        std::fs::rename(&odd, run).expect("renamed");
    }

    // No output takes the place of what the run is made of.
    let files: Vec<String> =
        ["checkpoint.safetensors", "run.json", "x"].map(|name| Path::new(run).join(name).display().to_string()).into();
    let [checkpoint, settings, new] = [0, 1, 2].map(|i| files[i].as_str());
    let kept = [checkpoint, settings].map(|file| std::fs::read(file).expect("a file"));
    for (args, word) in [
        (&["report", run, "--out", settings][..], "run.json: is a file of the run"),
        (&["export", run, "--stem", checkpoint], "checkpoint.safetensors: is a file of the run"),
        (&["export", run, "--classifier", checkpoint], "checkpoint.safetensors: is a file of the run"),
        (&["export", run, "--stem", new, "--classifier", new], "name the same file"),
    ] {
        let refused = trainer(args);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(word), "{args:?}: {text}");
    }
    assert_eq!([checkpoint, settings].map(|file| std::fs::read(file).expect("a file")), kept);

    // What is out of range in run.json is named before anything is made of it.
    let record = Path::new(run).join("run.json");
    let text = std::fs::read_to_string(&record).expect("run.json");
    let broken = text.replace("\"batch\": 32", "\"batch\": 0");
    assert_ne!(text, broken);
    std::fs::write(&record, broken).expect("written");
    for command in ["replace", "audit", "purify", "eval", "export", "report"] {
        let refused = trainer(&[command, run]);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{command}: {text}");
        assert!(text.contains("run.json: --batch"), "{command}: {text}");
    }
}

#[test]
fn training_goes_on_where_nobody_reads_what_it_prints() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut child = Command::new(env!("CARGO_BIN_EXE_stemguard-trainer"))
        .args(["train", "--data", "signs:200", "--batch", "16", "--epochs", "2", "--out"])
        .arg(dir.path().join("run"))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the binary starts");
    drop(child.stdout.take());
    assert!(child.wait().expect("it ends").success());
    let results = std::fs::read_to_string(dir.path().join("run/results.json")).expect("it was trained to the end");
    assert!(results.contains("\"trained\""), "{results}");
}

#[test]
fn a_plan_is_held_against_the_data_of_each_of_its_cells() {
    let dir = tempfile::tempdir().expect("a directory");
    let refused = |plan: &str| {
        let path = dir.path().join("plan.toml");
        std::fs::write(&path, format!("data = 'signs:400'\n{plan}")).expect("written");
        let (path, out) = (path.to_str().expect("a path").to_owned(), dir.path().join("sweep"));
        let result = trainer(&["sweep", &path, "--out", out.to_str().expect("a path")]);
        assert_eq!((result.status.code(), out.exists()), (Some(2), false));
        String::from_utf8_lossy(&result.stderr).into_owned()
    };
    // The holdout of one setting is too small for the others' batch, theirs is not.
    let settings = "attacks = ['blend']\n[base]\nbatch = 32\n[settings.a]\nholdout = 0.05\nreplace_batch = 8\n\
                    [settings.b]\nholdout = 0.2\n[settings.c]\nholdout = 0.2\nbatch = 400\n";
    let told = refused(settings);
    assert!(told.contains("blend-0.1-c-0: batch: 320 pictures are fewer"), "{told}");
    let told = refused("attacks = ['blend']\nrates = [0.1, 0.95]\n[base]\nbatch = 32\nholdout = 0.2\n");
    assert!(told.contains("blend-0.95-base-0: "), "{told}");
}

#[test]
fn of_clean_data_the_audit_accuses_next_to_nobody() {
    let dir = tempfile::tempdir().expect("a directory");
    let run = dir.path().join("run");
    let run = run.to_str().expect("a path");
    let mut told = String::new();
    for args in [
        &[
            "trap",
            "--data",
            "signs:1000",
            "--attack",
            "none",
            "--holdout",
            "0.2",
            "--batch",
            "32",
            "--epochs",
            "3",
            "--out",
            run,
        ][..],
        // It audits first.
        &["purify", run, "--purify-epochs", "1", "--replace-epochs", "10", "--replace-batch", "16", "--views", "2"],
    ] {
        let result = trainer(args);
        assert!(result.status.success(), "{args:?}: {}", String::from_utf8_lossy(&result.stderr));
        told = String::from_utf8_lossy(&result.stdout).into_owned();
    }
    let audit = std::fs::read_to_string(Path::new(run).join("audit.json")).expect("audit.json");
    let audit: serde_json::Value = serde_json::from_str(&audit).expect("JSON");
    let count = |key: &str| audit[key].as_u64().expect("a count");
    assert_eq!(count("pictures"), 800);
    assert!(100 * count("accused") <= count("pictures"), "{audit}");
    // Where nothing was unlearned, purification says so.
    assert_eq!(told.contains("nobody is accused"), count("accused") == 0, "{told}");
    // The sheet then shows where the heads disagree most: four rows of 64-pixel pictures.
    let sheet = std::fs::read(Path::new(run).join("audit.png")).expect("audit.png");
    let height = u32::from_be_bytes(sheet[20..24].try_into().expect("four bytes"));
    assert!(height > 4 * 64, "{height}");
}
