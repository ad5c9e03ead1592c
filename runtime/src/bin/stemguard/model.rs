//! Opening a model file, `.sgm` or `.onnx`.

use crate::artifact::{ArtifactFile, read_header};
use crate::fail::Fail;
#[cfg(feature = "onnx")]
use crate::ui;
use std::fs::File;
use std::path::{Path, PathBuf};
use stemguard_runtime::artifact::sign::Claim;
use stemguard_runtime::artifact::{self, Artifact, ArtifactParts, HeadKind};
use stemguard_runtime::session::bounds;
#[cfg(feature = "onnx")]
use stemguard_runtime::{
    net::{Op, OwnedNet},
    onnx::{self, OnnxError, TractModel},
};

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
        bounds::check(&parts).map_err(|e| Fail::at(&self.path, e))?;
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

/// The name of a kind of head, as flags and JSON spell it.
pub(crate) const fn head_name(kind: HeadKind) -> &'static str {
    match kind {
        HeadKind::Linear => "linear",
        HeadKind::Residual => "residual",
    }
}
