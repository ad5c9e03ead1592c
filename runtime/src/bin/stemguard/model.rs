//! Opening a model file, `.sgm` or `.onnx`, and bounding what running it would take.

use crate::artifact::{ArtifactFile, read_header};
use crate::fail::Fail;
#[cfg(feature = "onnx")]
use crate::ui;
use std::fs::File;
use std::path::{Path, PathBuf};
use stemguard_runtime::artifact::sign::Claim;
use stemguard_runtime::artifact::{self, Artifact, ArtifactParts, HeadKind, HeadParts, HeadSpec};
use stemguard_runtime::head;
use stemguard_runtime::net::int8::Int8Op;
use stemguard_runtime::net::{Op, Slot, Span, Window};
use stemguard_runtime::stem::Stem;
#[cfg(feature = "onnx")]
use stemguard_runtime::{
    net::OwnedNet,
    onnx::{self, OnnxError, TractModel},
};

/// The most bytes of arena, or of memory for a head, a model may ask for: 4 GiB.
const MAX_MEMORY: u64 = 4 << 30;
/// The most multiply-adds, pooling counted too, one picture may take.
const MAX_WORK: u64 = 1_000_000_000_000;
/// Pictures that go through a head together.
const HEAD_BATCH: usize = 64;

/// A model file, read and checked.
pub(crate) struct Loaded {
    path: PathBuf,
    content: Content,
}

/// What was in it.
enum Content {
    Artifact(ArtifactFile),
    #[cfg(feature = "onnx")]
    Onnx(Box<OnnxFile>),
}

/// An ONNX file, and the net it lowers to, or why it does not.
#[cfg(feature = "onnx")]
pub(crate) struct OnnxFile {
    /// The file.
    pub(crate) model: onnx::Model,
    /// Where it is cut; without, at its answer.
    pub(crate) at: Option<String>,
    /// The net.
    pub(crate) net: Result<OwnedNet, OnnxError>,
    /// The net's name: that of the file.
    name: String,
}

impl Loaded {
    /// Opens a file; `at` names the tensor an ONNX file is cut at. What a file is, its first bytes and its name tell.
    pub(crate) fn open(path: &Path, at: Option<&str>) -> Result<Self, Fail> {
        let mut file = File::open(path).map_err(|e| Fail::at(path, e))?;
        let header = read_header(path, &mut file)?;
        if header.starts_with(&artifact::MAGIC) || path.extension().is_some_and(|e| e == "sgm") {
            if at.is_some() {
                return Err(Fail::at(path, "`--at` names a tensor of an ONNX file, and this is an artifact"));
            }
            let file = ArtifactFile::read(path, file, &header)?;
            Artifact::new_checked(file.artifact()).map_err(|e| Fail::at(path, e))?;
            return Ok(Self { path: path.into(), content: Content::Artifact(file) });
        }
        Self::open_onnx(path, at)
    }

    #[cfg(feature = "onnx")]
    fn open_onnx(path: &Path, at: Option<&str>) -> Result<Self, Fail> {
        let model = onnx::Model::from_file(path).map_err(|e| onnx_fail(path, &e))?;
        let net = onnx::lower(&model, at);
        if let Err(e @ OnnxError::UnknownTensor { .. }) = &net {
            return Err(Fail::at(path, format!("`--at`: {e}")));
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let file = OnnxFile { model, at: at.map(str::to_string), net, name };
        Ok(Self { path: path.into(), content: Content::Onnx(Box::new(file)) })
    }

    #[cfg(not(feature = "onnx"))]
    fn open_onnx(path: &Path, _: Option<&str>) -> Result<Self, Fail> {
        let lacks = match Fail::lacks("ONNX", "onnx") {
            Fail::Input(text) => text,
            other => return Err(other),
        };
        Err(Fail::at(path, format!("not a .sgm artifact, and {lacks}")))
    }

    /// The file's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What the signature of a signed artifact says, unverified.
    pub(crate) const fn claim(&self) -> Option<Claim> {
        match &self.content {
            Content::Artifact(file) => file.claim(),
            #[cfg(feature = "onnx")]
            Content::Onnx(_) => None,
        }
    }

    /// The ONNX file, where it is one.
    #[cfg(feature = "onnx")]
    pub(crate) fn onnx(&self) -> Option<&OnnxFile> {
        match &self.content {
            Content::Artifact(_) => None,
            Content::Onnx(file) => Some(file),
        }
    }

    /// What the native backend runs: the artifact, or the net an ONNX file lowers to. Nothing absurdly large comes out.
    pub(crate) fn native(&self) -> Result<ArtifactParts<'_>, Fail> {
        let parts = self.parts()?;
        bounded(&self.path, &parts)?;
        Ok(parts)
    }

    /// Tells of an ONNX file that is taken for a stem and ends as whole classifiers do.
    pub(crate) fn tell_whole(&self) {
        #[cfg(feature = "onnx")]
        if let Some(Ok(net)) = self.onnx().map(|file| &file.net)
            && let Some(Op::Linear { y, .. }) = net.as_net().ops().last()
        {
            ui::note(format!(
                "{}: its last layer is dense, with {} outputs; if this is a whole classifier, cut it in front of its head with `--at` \
                 (`stemguard inspect MODEL --tensors` lists the places)",
                self.path.display(),
                y.shape.c
            ));
        }
    }

    /// As [`Loaded::native`], of any size.
    pub(crate) fn parts(&self) -> Result<ArtifactParts<'_>, Fail> {
        match &self.content {
            Content::Artifact(file) => {
                Artifact::new_checked(file.artifact()).map(|a| a.parts()).map_err(|e| Fail::at(&self.path, e))
            }
            #[cfg(feature = "onnx")]
            Content::Onnx(file) => match &file.net {
                Ok(net) => {
                    let (name, stem) = (&file.name[..], net.as_net().into());
                    Ok(ArtifactParts { name, labels: "", provenance: "", stem, head: None, tripwire: None })
                }
                Err(e) => Err(onnx_fail(&self.path, e)),
            },
        }
    }

    /// Why the native backend cannot run the file; `None` where it can.
    #[cfg(feature = "onnx")]
    pub(crate) fn why_not_native(&self) -> Option<String> {
        self.onnx().and_then(|file| file.net.as_ref().err()).map(ToString::to_string)
    }

    /// What tract runs: the ONNX file as it is, or the artifact written as one.
    #[cfg(feature = "onnx")]
    pub(crate) fn tract(&self) -> Result<TractModel, Fail> {
        let planned = match &self.content {
            Content::Artifact(_) => {
                let parts = self.native()?;
                onnx::defended(&parts).and_then(|b| onnx::Model::from_bytes(&b)).and_then(|m| TractModel::new(&m, None))
            }
            Content::Onnx(file) => {
                if file.net.is_ok() {
                    self.native()?;
                }
                TractModel::new(&file.model, file.at.as_deref())
            }
        };
        planned.map_err(|e| match self.why_not_native() {
            Some(why) => Fail::at(&self.path, format!("{why}; and through {e}")),
            None => onnx_fail(&self.path, &e),
        })
    }
}

/// An ONNX error with the file it is about.
#[cfg(feature = "onnx")]
pub(crate) fn onnx_fail(path: &Path, error: &OnnxError) -> Fail {
    match error {
        OnnxError::File { .. } => Fail::input(error),
        _ => Fail::at(path, error),
    }
}

/// Refuses a model that would take absurd memory or time.
fn bounded(path: &Path, parts: &ArtifactParts<'_>) -> Result<(), Fail> {
    let stem = parts.stem;
    let arena = stem.arena_bytes() as u64;
    if arena > MAX_MEMORY {
        return Err(Fail::at(path, format!("its arena of {arena} bytes is larger than 4 GiB")));
    }
    if let Stem::F32(net) = stem {
        // What the fast kernels copy a picture into.
        let padded = net.ops().map(|op| match op {
            Op::Conv { x, window: Window { pad: [top, left, bottom, right], .. }, .. } => {
                let (h, w) = (u64::from(x.shape.h) + u64::from(top) + u64::from(bottom), u64::from(x.shape.w));
                (4 * h).saturating_mul(w + u64::from(left) + u64::from(right)).saturating_mul(x.shape.c.into())
            }
            _ => 0,
        });
        let most = padded.max().unwrap_or(0);
        if most > MAX_MEMORY {
            return Err(Fail::at(path, format!("a convolution's padded picture of {most} bytes is larger than 4 GiB")));
        }
    }
    let work = work(&stem);
    if work > MAX_WORK {
        return Err(Fail::at(path, format!("{work} multiply-adds a picture are more than the limit of 10^12")));
    }
    for spec in [head_spec(parts), witness_spec(parts)].into_iter().flatten() {
        let scratch = head::inference_len(&spec, HEAD_BATCH).map_err(|e| Fail::at(path, e))?;
        let bytes = 4 * (scratch as u64 + (HEAD_BATCH * spec.features.len()) as u64);
        if bytes > MAX_MEMORY {
            return Err(Fail::at(path, format!("its head takes {bytes} bytes of memory, more than 4 GiB")));
        }
    }
    Ok(())
}

/// The head's kind and sizes; its parameters are counted from 0.
pub(crate) fn head_spec(parts: &ArtifactParts<'_>) -> Option<HeadSpec> {
    spec(parts, parts.head?)
}

/// The same of the tripwire's witness.
pub(crate) fn witness_spec(parts: &ArtifactParts<'_>) -> Option<HeadSpec> {
    spec(parts, parts.tripwire?.witness)
}

fn spec(parts: &ArtifactParts<'_>, head: HeadParts<'_>) -> Option<HeadSpec> {
    let span = Span { at: 0, len: u32::try_from(head.params.len()).ok()? };
    Some(HeadSpec { kind: head.kind, features: parts.stem.output(), classes: head.classes, span })
}

/// The name of a kind of head, as flags and JSON spell it.
pub(crate) const fn head_name(kind: HeadKind) -> &'static str {
    match kind {
        HeadKind::Linear => "linear",
        HeadKind::Residual => "residual",
    }
}

/// Multiply-adds of a stem, and the elements its pooling windows read.
fn work(stem: &Stem<'_>) -> u64 {
    let pooled = |y: Slot, window: Window| {
        (y.shape.len() as u64).saturating_mul(u64::from(window.kernel[0]) * u64::from(window.kernel[1]))
    };
    let all = stem.multiply_adds();
    match stem {
        Stem::F32(net) => net
            .ops()
            .map(|op| match op {
                Op::MaxPool { y, window, .. } | Op::AvgPool { y, window, .. } => pooled(y, window),
                _ => 0,
            })
            .fold(all, u64::saturating_add),
        Stem::Int8(net) => net
            .ops()
            .map(|op| match op {
                Int8Op::MaxPool { y, window, .. } | Int8Op::AvgPool { y, window, .. } => pooled(y, window),
                _ => 0,
            })
            .fold(all, u64::saturating_add),
    }
}
