//! Plans that stand, and those that are refused.

use super::*;

fn plan(text: &str) -> Result<Plan, Failure> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("sweep.toml");
    std::fs::write(&path, text).expect("written");
    Plan::read(&path)
}

fn plan_of(text: &str) -> Vec<Cell> {
    plan(text).and_then(|p| p.cells()).expect("cells")
}

#[test]
fn a_grid_is_every_combination() {
    let plan = plan(
        "data = 'signs:100'\nattacks = ['badnet-grid', 'blend']\nrates = [0.01, 0.1]\nseeds = [0, 1, 2]\n\
         [settings.short]\nepochs = 2\n[settings.long]\nepochs = 4\nmse = 5.0\n",
    )
    .expect("a plan");
    let cells = plan.cells().expect("cells");
    assert_eq!(cells.len(), 2 * 2 * 2 * 3);
    let names: std::collections::BTreeSet<&str> = cells.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names.len(), cells.len());
    assert!(cells.iter().any(|c| c.config.epochs == 4 && c.config.mse == 5.0));
    assert!(cells.iter().all(|c| !c.config.flip));
    let spelled = plan_of("data = 'signs'\nattacks = ['l2_inv']\n[triggers]\nl2_inv = 'a.png'\n");
    assert_eq!(spelled[0].config.attack.trigger.as_deref(), Some(Path::new("a.png")));
}

#[test]
fn settings_change_what_the_base_says() {
    let base = "data = 'signs:100'\nattacks = ['blend']\n[base]\nepochs = 3\nbatch = 8\nviews = 2\n";
    let cells = |settings: &str| plan_of(&format!("{base}{settings}"));
    let alone = &cells("")[0];
    assert_eq!((alone.setting.as_str(), alone.config.epochs, alone.config.batch), ("base", 3, 8));
    let drop = &cells("[settings.a]\npurify_mode = 'drop'\npurify_rounds = 2")[0].purification;
    assert_eq!(drop.as_ref().map(|p| (p.mode, p.rounds)), Some((Mode::Drop, 2)));
    assert!(cells("[settings.a]\npurify = false")[0].purification.is_none());
    let both = cells("[settings.a]\n[settings.b]\nepochs = 5\narchitecture = { depth = 16, width = 1, split = 4 }");
    let found: Vec<_> = both.iter().map(|c| (c.config.epochs, c.config.batch, c.replacement.space)).collect();
    let space = Space::Features { views: 2 };
    assert_eq!(found, [(3, 8, space), (5, 8, space)]);
    assert_eq!(both[1].config.architecture.split, 4);
    let wide = "architecture = { width = 2, split = 4 }\n[settings.a]\nlr = 0.5\narchitecture = { split = 6 }";
    let wide = &plan_of(&format!("size = [40, 48]\nholdout_data = 'signs:50'\n{base}rate = 0.25\n{wide}"))[0].config;
    assert_eq!((wide.architecture.width, wide.architecture.split, wide.rate), (2, 6, 0.5));
    assert_eq!((wide.size, wide.holdout_data.as_deref()), (Some((40, 48)), Some("signs:50")));
    let guards = |settings: &str| cells(settings).iter().map(|c| c.config.guard).collect::<Vec<_>>();
    // Three epochs leave none after a guard.
    assert_eq!(guards("[settings.a]\n[settings.b]\nepochs = 24"), [None, Some(8)]);
    let both = "guard = 2\n[settings.a]\n[settings.b]\nloss = 'published'";
    assert_eq!(guards(both), [Some(2), None]);
}

#[test]
fn cells_that_poison_the_same_pictures_share_their_ceiling() {
    let cells = plan_of(
        "data = 'signs:100'\nattacks = ['none', 'blend', 'badnet-sq', 'cl', 'sig']\nrates = [0.01, 0.1]\nceiling = true\n\
         [triggers]\nblend = 'blend.png'\n",
    );
    let of = |name: &str| {
        let cell = cells.iter().find(|c| c.name == name).expect("a cell");
        cell.ceiling.as_ref().map(|(name, c)| (name.as_str(), c))
    };
    assert_eq!(cells.len(), 9);
    assert_eq!(of("none-0.01-default-0"), None);
    for rate in ["0.01", "0.1"] {
        assert_eq!(of(&format!("blend-{rate}-default-0")), of(&format!("badnet-sq-{rate}-default-0")));
        assert_eq!(of(&format!("cl-{rate}-default-0")), of(&format!("sig-{rate}-default-0")));
    }
    let names: std::collections::BTreeSet<&str> =
        cells.iter().filter_map(|c| c.ceiling.as_ref()).map(|(name, _)| name.as_str()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    let settings = "ceiling = true\n[settings.guarded]\nepochs = 9\n[settings.published]\nepochs = 9\nloss = 'published'\n\
                    [settings.longer]\nepochs = 10\n";
    let settings = plan_of(&format!("data = 'signs:100'\nattacks = ['blend']\n{settings}"));
    let shared: Vec<String> = settings.iter().filter_map(|c| c.ceiling.as_ref()).map(|c| c.0.clone()).collect();
    assert_eq!(shared, ["ceiling-0.1-guarded-0", "ceiling-0.1-longer-0", "ceiling-0.1-guarded-0"]);
    assert!(cells.iter().filter_map(|c| c.ceiling.as_ref()).all(|(_, c)| c.oracle && !c.trap && c.check().is_ok()));
}

#[test]
fn published_plans_can_be_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/sweeps");
    let plans: Vec<_> = std::fs::read_dir(folder).expect("plans").map(|f| f.expect("a file").path()).collect();
    assert!(plans.len() >= 4, "{plans:?}");
    for plan in plans {
        let cells = Plan::read(&plan).and_then(|p| p.cells()).expect("cells");
        assert!(cells.len() > 1, "{}", plan.display());
    }
}

#[test]
fn bad_files_are_named() {
    for (text, word) in [
        ("data = 'signs'\nattacks = []", "attacks"),
        ("data = 'signs'\nattacks = ['nonesuch']", "nonesuch"),
        ("data = 'signs'\nattacks = ['blend']\nspeed = 3", "speed"),
        ("data = 'signs'\nattacks = ['blend']\n[settings.a]\nepochs = -1", "sweep.toml"),
        ("data = 'signs'\nattacks = ['l2-inv']\n[triggers]\nl2-inv = 'a'\nl2_inv = 'b'", "l2-inv is given twice"),
        ("data = 'signs'\nattacks = ['none']\nrates = [0.1, 1.5]", "sweep.toml: rates: 1.5 is"),
        ("data = 'signs'\nattacks = ['none']\nholdout_data = 'clean'", "sweep.toml: holdout_data: "),
        ("data = 'signal'\nattacks = ['blend']", "sweep.toml: data: "),
        ("data = 'signs'\nattacks = ['wanet']\n[triggers]\nwanet = 'a.png'", "sweep.toml: triggers: "),
    ] {
        let message = plan(text).expect_err("refused").to_string();
        assert!(message.contains(word), "{message}");
    }
    for (setting, word) in [
        ("views = 0", "views"),
        ("loss = 'published'\nguard = 3", "no guard"),
        ("guard = 200", "guard 200 is"),
        ("replace_batch = 1", "replace_batch"),
        ("inoculate = 2.0", "inoculate is"),
        ("purify_rounds = 4", "purify_rounds is"),
        ("lr = 20.0", "lr 20 is"),
        ("rate = -1.0", "lr -1 is"),
        ("epochs = 0", "epochs must"),
        ("architecture = { split = 7 }", "split of a WideResNet is"),
    ] {
        let bad = plan(&format!("data = 'signs'\nattacks = ['blend']\n[settings.a]\n{setting}")).expect("reads");
        let message = bad.cells().expect_err("refused").to_string();
        assert!(message.contains(word) && message.contains("sweep.toml: setting 'a': "), "{setting}: {message}");
        assert!(!message.contains("--"), "{setting}: {message}");
    }
}
