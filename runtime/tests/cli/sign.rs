//! Keys, signing, verifying; and what must be refused.

use crate::support::{Folder, done, failed, noise, npy_f32, read_npy, refused, run, small_defended};
use stemguard_runtime::artifact::sign::TRAILER_LEN;

/// A folder with a pair of keys, `model.key`, and a small artifact, `small.sgm`.
fn with_keys() -> (Folder, [String; 3]) {
    let folder = Folder::new();
    let (key, model) = (folder.at("model.key"), folder.put("small.sgm", small_defended()));
    done(&["keygen", "--out", &key]);
    let public = folder.at("model.key.pub");
    (folder, [key, public, model])
}

/// The text behind a key of a JSON line.
fn text<'a>(json: &'a str, key: &str) -> &'a str {
    json.split_once(&format!("\"{key}\":\"")).unwrap().1.split('"').next().unwrap()
}

#[test]
fn keys_are_made_once_and_kept_private() {
    let folder = Folder::new();
    let key = folder.at("a.key");
    let told = done(&["keygen", "--out", &key, "--json"]);
    assert_eq!((told.lines().count(), text(&told, "public_key").len(), text(&told, "key_id").len()), (1, 64, 16));
    assert_eq!((text(&told, "private"), text(&told, "public")), (&key[..], &format!("{key}.pub")[..]));
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let (private, public) = (read("a.key"), read("a.key.pub"));
    assert!(private.starts_with("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEI"), "not PKCS#8");
    assert!(public.starts_with("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA"), "{public}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    // Never overwritten: neither of the two.
    refused(&["keygen", "--out", &key], &["a.key", "exists already"]);
    let other = folder.at("b.key");
    folder.put("b.key.pub", "something");
    refused(&["keygen", "--out", &other], &["b.key.pub", "exists already"]);
    refused(&["keygen", "--out", &folder.at("none/c.key")], &["none", "does not exist"]);
    assert_eq!((read("a.key"), read("a.key.pub"), read("b.key.pub")), (private, public, "something".into()));
    assert!(done(&["keygen", "--out", &folder.at("d.key")]).contains("to be kept secret"));
    assert!(read("d.key.pub") != read("a.key.pub"));
    assert_eq!(folder.names(), ["a.key", "a.key.pub", "b.key.pub", "d.key", "d.key.pub"]);
}

#[test]
fn a_signed_model_verifies_and_runs_as_any_other() {
    let (folder, [key, public, model]) = with_keys();
    let signed = folder.at("signed.sgm");
    let told = done(&["sign", &model, "--key", &key, "--model-version", "7", "--out", &signed, "--json"]);
    let bytes = std::fs::read(&signed).unwrap();
    assert!(told.contains("\"model_version\":7") && told.contains(&format!("\"bytes\":{}", bytes.len())), "{told}");
    assert_eq!(bytes[..bytes.len() - TRAILER_LEN], small_defended());
    for minimum in ["0", "6", "7"] {
        let flags = ["--key", &public, "--minimum-version", minimum, "--json"];
        let verified = done(&[&["verify", &signed][..], &flags].concat());
        assert!(verified.contains("\"model_version\":7") && verified.contains("\"name\":\"small\""), "{verified}");
        assert_eq!(text(&verified, "sha256"), text(&told, "sha256"));
        assert_eq!(text(&verified, "key_id"), text(&told, "key_id"));
    }
    assert!(done(&["verify", &signed, "--key", &public]).contains("good, model version 7"));

    // Other commands read it, and tell that they do not verify.
    assert!(done(&["inspect", &signed]).contains("model version 7, not verified"));
    assert!(done(&["inspect", &signed, "--json"]).contains("\"signature\":{\"key_id\":"));
    assert!(done(&["inspect", &model, "--json"]).contains("\"signature\":null"));
    let x = folder.put("x.npy", npy_f32(&[2, 3, 8, 8], &noise(384)));
    let answers = [&model, &signed].map(|model| {
        let y = folder.at("y.npy");
        done(&["run", model, "--input", &x, "--output", &y]);
        read_npy(&y)
    });
    assert_eq!(answers[0], answers[1]);

    // A key is not replaced by what it signs.
    refused(&["sign", &model, "--key", &key, "--model-version", "8", "--out", &key], &["model.key: is the key"]);
    refused(&["verify", &signed, "--key", &public, "--minimum-version", "8"], &["7 is older than 8"]);

    // In place, a later version: the signature is replaced, and there is one way to sign.
    done(&["sign", &signed, "--key", &key, "--model-version", "8"]);
    done(&["sign", &model, "--key", &key, "--model-version", "8"]);
    assert_eq!(std::fs::read(&signed).unwrap(), std::fs::read(&model).unwrap());
    refused(&["verify", &model, "--key", &public, "--minimum-version", "9"], &["small.sgm: ", "8 is older than 9"]);
    assert_eq!(folder.names(), ["model.key", "model.key.pub", "signed.sgm", "small.sgm", "x.npy", "y.npy"]);
}

#[test]
fn what_is_not_signed_by_the_key_is_refused() {
    let (folder, [key, public, model]) = with_keys();
    refused(&["verify", &model, "--key", &public], &["small.sgm: ", "not signed"]);
    let other = folder.at("other.key");
    done(&["keygen", "--out", &other]);
    done(&["sign", &model, "--key", &other, "--model-version", "1"]);
    refused(&["verify", &model, "--key", &public], &["small.sgm: ", "another key"]);
    done(&["sign", &model, "--key", &key, "--model-version", "1"]);
    done(&["verify", &model, "--key", &public]);

    let good = std::fs::read(&model).unwrap();
    let artifact = good.len() - TRAILER_LEN;
    let mut rng = stemguard_runtime::rng::Rng::new(3, 3);
    for i in 0..120 {
        // In the artifact, in the trailer before the signature, in the signature.
        let (from, to) = [(0, artifact), (artifact, artifact + 24), (artifact + 24, good.len())][i % 3];
        let bit = 8 * from + rng.below(8 * (to - from));
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        refused(&["verify", &folder.put("flipped.sgm", bytes), "--key", &public], &["flipped.sgm: "]);
    }
    let mut forged = good.clone();
    forged[artifact - 40] ^= 1;
    crate::support::reseal(&mut forged[..artifact]);
    let forged = folder.put("forged.sgm", forged);
    refused(&["verify", &forged, "--key", &public], &["forged.sgm: ", "the signature does not hold"]);
    done(&["inspect", &forged]);
    for len in [0, 15, artifact / 2, artifact - 1, artifact, artifact + 1, artifact + 50, good.len() - 1] {
        let cut = folder.put("cut.sgm", &good[..len]);
        refused(&["verify", &cut, "--key", &public], &["cut.sgm: "]);
        if len != artifact {
            refused(&["inspect", &cut], &["cut.sgm: "]);
        }
    }
    let long = folder.put("long.sgm", [&good[..], b"x"].concat());
    refused(&["verify", &long, "--key", &public], &["long.sgm: ", "bytes follow"]);
    refused(&["inspect", &long], &["long.sgm: ", "bytes follow"]);
    let mut future = good.clone();
    future[artifact + 8] = 9;
    refused(&["inspect", &folder.put("future.sgm", future)], &["future.sgm: ", "version 9 is newer"]);
}

#[test]
fn bad_keys_and_models_are_told_and_nothing_is_written() {
    let (folder, [key, public, model]) = with_keys();
    let out = folder.at("out.sgm");
    let sign = |model: &str, key: &str, words: &[&str]| {
        refused(&["sign", model, "--key", key, "--model-version", "1", "--out", &out], words);
    };
    sign(&model, &public, &["model.key.pub: ", "no `PRIVATE KEY`"]);
    sign(&model, &folder.at("missing.key"), &["missing.key", "No such file"]);
    sign(&model, &folder.put("text.key", "no key"), &["text.key: ", "no `PRIVATE KEY`"]);
    sign(&model, &folder.put("binary.key", [0xff; 9]), &["binary.key: "]);
    let pem = std::fs::read_to_string(&key).unwrap();
    sign(&model, &folder.put("digits.key", pem.replacen('M', "?", 1)), &["digits.key: ", "PEM"]);
    let rsa = "-----BEGIN PRIVATE KEY-----\nMIICXAIBAAKBgQ==\n-----END PRIVATE KEY-----\n";
    sign(&model, &folder.put("rsa.key", rsa), &["rsa.key: ", "no Ed25519 key"]);
    sign(&key, &key, &["model.key: ", "not a .sgm artifact"]);
    let mut damaged = small_defended();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    sign(&folder.put("damaged.sgm", damaged), &key, &["damaged.sgm: ", "damaged"]);
    refused(&["sign", &model, "--key", &key], &["--model-version <N>"]);
    refused(&["sign", &model, "--key", &key, "--model-version", "0"], &["--model-version"]);
    refused(&["sign", &model, "--key", &key, "--model-version", "4294967296"], &["--model-version"]);
    let none = folder.at("none/out.sgm");
    refused(&["sign", &model, "--key", &key, "--model-version", "1", "--out", &none], &["does not exist"]);
    if std::path::Path::new("/dev/full").exists() {
        let args = ["sign", &model, "--key", &key, "--model-version", "1", "--out", "/dev/full"];
        failed(&args, 2, &["/dev/full", "cannot be written"]);
    }

    refused(&["verify", &model, "--key", &key], &["model.key: ", "no `PUBLIC KEY`"]);
    // A point of small order: any signature would hold under it.
    let weak = format!("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA{}=\n-----END PUBLIC KEY-----\n", "A".repeat(43));
    refused(&["verify", &model, "--key", &folder.put("weak.pub", weak)], &["weak.pub: ", "not a public key"]);
    assert_eq!(std::fs::read(&model).unwrap(), small_defended());
    assert!(!folder.names().iter().any(|name| name.contains("out") || name.contains("part")));

    for command in ["keygen", "sign", "verify"] {
        let ran = run(&[command, "--help"]);
        assert!(ran.code == 0 && ran.out.contains("Example") && ran.err.is_empty(), "{command}: {}", ran.err);
    }
    assert!(run(&["--help"]).out.contains("`verify` alone checks the signature"));
}
