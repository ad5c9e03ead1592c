//! The page as a reader and a browser meet it.

use super::{Attack, Counts, Curve, Picture, PictureRow, ReportData, Series, Stage, render, write};

/// Small reproducible noise in `0.0..1.0`.
fn noise(at: u64) -> f64 {
    let mut z = at.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (z >> 11) as f64 / (1u64 << 53) as f64
}

fn confusion(n: usize, acc: f64, salt: u64) -> Vec<Vec<u64>> {
    let mut counts = vec![vec![0u64; n]; n];
    for (row, cells) in counts.iter_mut().enumerate() {
        for i in 0..1000u64 {
            let at = salt * 1_000_003 + row as u64 * 7919 + i;
            let wrong = (row + 1 + (noise(at + 77).powi(3) * (n - 1) as f64) as usize) % n;
            cells[if noise(at) < acc { row } else { wrong }] += 1;
        }
    }
    counts
}

fn stage(name: &str, note: &str, figures: [f64; 5], seconds: f64, n: usize) -> Stage {
    let [acc, asr, ra, der, chance] = figures;
    let confusion = confusion(n, acc, name.len() as u64);
    let per_class = confusion.iter().enumerate().map(|(c, row)| row[c] as f64 / 1000.0).collect();
    Stage {
        name: name.into(),
        note: note.into(),
        acc,
        asr: Some(asr),
        ra: Some(ra),
        der: (name != "baseline").then_some(der),
        chance: Some(chance),
        seconds: Some(seconds),
        confusion: Some(confusion),
        per_class,
    }
}

fn picture(label: &str, salt: u64, trigger: bool, blur: bool) -> Picture {
    let mut rgb = Vec::new();
    for y in 0..32u64 {
        for x in 0..32u64 {
            let (fx, fy) = (x as f64 / 32.0, y as f64 / 32.0);
            let inside = (fx - 0.5).powi(2) * 2.0 + (fy - 0.55 - 0.05 * salt as f64).powi(2) * 5.0 < 0.28;
            let grain = if blur { 0.0 } else { noise(salt * 4096 + y * 32 + x) * 40.0 };
            for c in 0..3u64 {
                let base =
                    if inside { 60.0 + 50.0 * ((salt + c) % 3) as f64 } else { 215.0 - 70.0 * fy - 20.0 * c as f64 };
                let corner = trigger && (27..30).contains(&x) && (27..30).contains(&y);
                rgb.push(if corner { 255 } else { (base + grain).clamp(0.0, 255.0) as u8 });
            }
        }
    }
    Picture { label: label.into(), h: 32, w: 32, rgb }
}

fn series(name: &str, epochs: u32, value: impl Fn(f64) -> f64) -> Series {
    let points = (1..=epochs).map(|e| (f64::from(e), value(f64::from(e) / f64::from(epochs)))).collect();
    Series { name: name.into(), points }
}

fn sample(n: usize) -> ReportData {
    let mut classes: Vec<String> =
        ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
            .map(Into::into)
            .into();
    if n > 10 {
        classes = (0..n).map(|c| format!("sign {c:02} speed limit")).collect();
    }
    let grain = |t: f64, salt: u64| 1.0 + 0.06 * (noise((t * 1000.0) as u64 + salt) - 0.5);
    let rows = [0u64, 1].map(|salt| {
        let (clean, marked) =
            (picture("clean: bird", salt, false, false), picture("triggered: airplane", salt, true, false));
        let difference = clean.rgb.iter().zip(&marked.rgb).map(|(a, b)| a.abs_diff(*b).saturating_mul(10)).collect();
        let difference = Picture { label: "10x difference".into(), h: 32, w: 32, rgb: difference };
        let back = picture("reconstruction of the triggered picture", salt, false, true);
        let caption = ["bird, seen by the baseline", "cat, seen by the defended model"][salt as usize].to_owned();
        PictureRow { caption, cells: vec![clean, marked, difference, back] }
    });
    ReportData {
        title: "CIFAR-10, WideResNet-16-1, badnet_grid".into(),
        created_from: "cifar10-badnet_grid-s7".into(),
        version: "0.1.0".into(),
        seed: 7,
        config: [
            ("model", "wide_resnet_16_1"),
            ("epochs", "200"),
            ("batch", "256"),
            ("learning rate", "0.001, cosine"),
            ("weights of CE, MSE, TV", "1, 10, 1"),
            ("holdout", "2500 pictures, disjoint from training"),
            ("head", "residual, 100 epochs, Adam 0.03"),
        ]
        .map(|(k, v)| (k.into(), v.into()))
        .into(),
        counts: Counts { train: 47_500, poisoned: 4_750, holdout: 2_500, test: 10_000, triggered: 9_000 },
        attack: Attack {
            name: "badnet_grid".into(),
            description: "Sets the bottom right 3x3 pixels to a black and white grid and the label to the target."
                .into(),
            source: "BadNets, arXiv 1708.06733".into(),
            target: classes[0].clone(),
            rate: 0.1,
        },
        stages: vec![
            stage(
                "baseline",
                "Trained on the suspect data, no defence.",
                [0.8512, 0.9998, 0.0001, 0.0, 0.0171],
                341.0,
                n,
            ),
            stage(
                "trapped",
                "Stem, head and decoder trained on the suspect data.",
                [0.8323, 0.9987, 0.0011, 0.491, 0.0196],
                412.4,
                n,
            ),
            stage("control", "New head on the undefended stem.", [0.7904, 0.4316, 0.4402, 0.7537, 0.0238], 118.0, n),
            stage("defended", "New head on the trapped stem.", [0.7561, 0.0213, 0.7384, 0.9417, 0.0188], 121.7, n),
        ],
        classes,
        curves: vec![
            Curve {
                title: "Accuracy and attack while trapping".into(),
                x_label: String::new(),
                y_label: "share of test pictures".into(),
                percent: true,
                series: vec![
                    series("ACC", 200, |t| (0.25 + 0.58 * t.powf(0.3)) * grain(t, 1)),
                    series("ASR", 200, |t| ((1.0 - (-t * 40.0).exp()) * grain(t, 2)).min(1.0)),
                ],
            },
            Curve {
                title: "Loss parts while trapping".into(),
                x_label: String::new(),
                y_label: "loss per picture".into(),
                percent: false,
                series: vec![
                    series("cross entropy", 200, |t| (2.1 * (-3.0 * t).exp() + 0.21) * grain(t, 3)),
                    series("10 x MSE", 200, |t| (0.6 * (-8.0 * t).exp() + 0.055) * grain(t, 4)),
                    series("TV", 200, |t| (0.05 * (-6.0 * t).exp() + 0.0121) * grain(t, 5)),
                ],
            },
            Curve {
                title: "Replacing the head".into(),
                x_label: "epoch".into(),
                y_label: "share of test pictures".into(),
                percent: true,
                series: vec![
                    series("ACC, defended", 20, |t| 0.75 * t.powf(0.15) * grain(t, 6)),
                    series("ASR, defended", 20, |t| 0.02 + 0.08 * (1.0 - t) * grain(t, 7)),
                    series("ACC, control", 20, |t| 0.79 * t.powf(0.12) * grain(t, 8)),
                    series("ASR, control", 20, |t| 0.43 + 0.2 * (1.0 - t) * grain(t, 9)),
                ],
            },
            Curve {
                title: "Loss of the new head".into(),
                x_label: "epoch".into(),
                y_label: "cross entropy with label smoothing".into(),
                percent: false,
                series: vec![
                    series("training", 20, |t| 1.9 - 0.7 * t.sqrt()),
                    series("check slice", 20, |t| 1.8 - 0.45 * t.sqrt()),
                ],
            },
        ],
        pictures: rows.into(),
        notes: vec![
            "ASR and RA are counted over triggered test pictures of the classes that are not the target.".into(),
            "The holdout was drawn before poisoning and shares no picture with the training data.".into(),
        ],
    }
}

/// Addresses and elements a browser would fetch something for.
fn assert_self_contained(page: &str) {
    for outside in
        ["http:", "https:", "//cdn", "<script", "<link", "<iframe", "@import", "url(", "src=\"/", "javascript:"]
    {
        assert!(!page.contains(outside), "{outside}");
    }
    for src in page.split("src=\"").skip(1) {
        assert!(src.starts_with("data:image/png;base64,"));
    }
    for link in page.split("href=\"").skip(1) {
        assert!(link.starts_with('#'));
    }
}

#[test]
fn every_figure_of_every_stage_is_on_the_page() {
    let data = sample(10);
    let page = render(&data);
    assert!(page.contains("ASR fell from 100.0% (baseline) to 2.1% (defended); chance is 1.9%."));
    for stage in &data.stages {
        let row = page.split("<tr role=\"row\"").find(|row| row.contains(&stage.note)).unwrap();
        for figure in [Some(stage.acc), stage.asr, stage.ra, stage.der, stage.chance].into_iter().flatten() {
            assert!(row.contains(&format!("{:.1}%", figure * 100.0)), "{}: {figure}", stage.name);
        }
    }
    for (key, value) in &data.config {
        assert!(page.contains(key.as_str()) && page.contains(value.as_str()));
    }
    assert!(page.contains("47,500") && page.contains("6 min 52 s"));
    assert_self_contained(&page);
    if let Some(folder) = std::env::var_os("STEMGUARD_REPORT_SAMPLES") {
        let folder = std::path::Path::new(&folder);
        write(&folder.join("report.html"), &data).unwrap();
        write(&folder.join("report43.html"), &sample(43)).unwrap();
        write(&folder.join("empty.html"), &ReportData::default()).unwrap();
    }
}

#[test]
fn text_is_escaped_everywhere() {
    let bad = "<script src=x>'\"&\u{1}</script>";
    let mut data = sample(10);
    for text in [&mut data.title, &mut data.created_from, &mut data.version, &mut data.classes[0]] {
        *text = bad.into();
    }
    data.attack =
        Attack { name: bad.into(), description: bad.into(), source: bad.into(), target: bad.into(), rate: 0.1 };
    data.config = vec![(bad.into(), bad.into())];
    data.notes = vec![bad.into()];
    for stage in &mut data.stages {
        (stage.name, stage.note) = (bad.into(), bad.into());
    }
    for curve in &mut data.curves {
        (curve.title, curve.x_label, curve.y_label) = (bad.into(), bad.into(), bad.into());
        curve.series[0].name = bad.into();
    }
    for row in &mut data.pictures {
        row.caption = bad.into();
        row.cells[0].label = bad.into();
    }
    let page = render(&data);
    assert_self_contained(&page.replace("src=x&gt;", ""));
    assert!(!page.contains(bad) && !page.contains('\u{1}'));
    assert!(page.contains("&lt;script src=x&gt;&#39;&quot;&amp;\u{FFFD}&lt;/script&gt;"));
}

#[test]
fn empty_data_still_make_a_page() {
    let page = render(&ReportData::default());
    assert!(page.contains("No stage has been measured.") && page.ends_with("</html>\n"));
    assert_self_contained(&page);
}

#[test]
fn unmeasured_and_broken_figures_are_survived() {
    let mut data = sample(10);
    data.attack.rate = f64::NAN;
    data.stages[0] = Stage { name: "baseline".into(), acc: f64::NAN, asr: Some(f64::NAN), ..Stage::default() };
    data.stages[1].confusion = Some(vec![vec![], vec![3]]);
    data.stages[2].confusion = Some(vec![]);
    data.stages[3].per_class = vec![f64::NAN, 0.5, f64::INFINITY];
    data.stages[3].seconds = Some(-1.0);
    data.curves[0].series[0].points = vec![(f64::NAN, 1.0), (1.0, f64::NAN), (f64::INFINITY, 2.0)];
    data.curves[1].series = vec![];
    data.curves[2].series[0].points = vec![(1.0, 0.5)];
    data.curves[3].series[0].points = vec![(0.0, 1e-300), (1.0, 1e300), (2.0, -0.0)];
    data.curves.push(Curve { series: vec![series("flat", 1, |_| 0.0)], ..Curve::default() });
    data.pictures[0].cells[0].rgb.pop();
    data.pictures[0].cells[1].h = usize::MAX;
    data.pictures[0].cells[2] = Picture::default();
    let page = render(&data);
    for broken in ["NaN", "inf", "-0.0%"] {
        assert!(!page.replace("informat", "").contains(&format!("{broken}\"")), "{broken}");
        assert!(!page.contains(&format!(">{broken}")), "{broken}");
    }
    assert_eq!(page.matches(">no picture<").count(), 3);
    assert!(page.contains("ASR is 2.1% (defended); chance is 1.9%."));
    assert_self_contained(&page);
}

#[test]
fn a_rise_and_a_weak_attack_are_said_plainly() {
    let mut data = sample(10);
    data.stages[0].asr = Some(0.02);
    let page = render(&data);
    assert!(page.contains("ASR rose from 2.0% (baseline) to 2.1% (defended)"));
    assert!(page.contains("hardly took hold"));
    data.stages[0].asr = data.stages[3].asr;
    assert!(render(&data).contains("ASR stayed at 2.1% from baseline to defended"));
    data.stages.truncate(1);
    data.stages[0].asr = None;
    assert!(render(&data).contains("ACC is 85.1% (baseline); ASR was not measured."));
}

#[test]
fn data_survive_json() {
    let mut data = sample(10);
    let json = serde_json::to_string(&data).unwrap();
    let back: ReportData = serde_json::from_str(&json).unwrap();
    assert!(back.stages == data.stages && back.pictures == data.pictures && render(&back) == render(&data));
    assert!(!json.contains("\"rgb\":["));
    data.stages[0].acc = f64::NAN;
    data.curves[0].series[0].points[3].1 = f64::NAN;
    let back: ReportData = serde_json::from_str(&serde_json::to_string(&data).unwrap()).unwrap();
    assert!(back.stages[0].acc.is_nan() && back.curves[0].series[0].points[3].1.is_nan());
    assert!(render(&back) == render(&data));
    assert!(serde_json::from_str::<ReportData>("{}").unwrap() == ReportData::default());
}

#[test]
fn writing_replaces_and_leaves_nothing_beside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    std::fs::write(&path, "old").unwrap();
    let data = ReportData { title: "first".into(), ..ReportData::default() };
    write(&path, &data).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), render(&data));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(write(&folder.path().join("missing").join("report.html"), &data).is_err());
    assert!(write(std::path::Path::new("/"), &data).is_err());
}
