//! Running a model on a batch of pictures, whichever backend does it.

use crate::fail::Fail;
use crate::model::Loaded;
#[cfg(feature = "onnx")]
use crate::ui;
use stemguard_runtime::error::Error;
use stemguard_runtime::kernels::simd::Simd;
#[cfg(feature = "onnx")]
use stemguard_runtime::onnx::{OnnxError, TractModel, TractState};
use stemguard_runtime::session::Session;
use stemguard_runtime::shape::Shape;
use stemguard_runtime::tripwire::Alarm;

/// What runs a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Backend {
    /// This runtime's own net and kernels
    Native,
    /// Tract, for models the net cannot express
    Tract,
}

impl Backend {
    /// The name flags and JSON use.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Tract => "tract",
        }
    }
}

/// The order of a picture's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `[h][w][c]`
    Hwc,
    /// `[c][h][w]`
    Chw,
}

/// A model ready to run.
pub(crate) enum Runner<'a> {
    /// On this runtime's kernels.
    Native(Box<Session<'a>>),
    /// Through tract.
    #[cfg(feature = "onnx")]
    Tract(Box<Tract>),
}

/// A model planned by tract.
#[cfg(feature = "onnx")]
pub(crate) struct Tract {
    model: TractModel,
    path: std::path::PathBuf,
    output: Shape,
    kernels: Simd,
    /// States that are not at work, one a thread at most.
    states: std::sync::Mutex<Vec<TractState>>,
}

impl<'a> Runner<'a> {
    /// A runner on one backend.
    pub(crate) fn on(backend: Backend, model: &'a Loaded, kernels: &Simd) -> Result<Self, Fail> {
        match backend {
            Backend::Native => {
                let session = Session::of_artifact(&model.native()?, kernels.clone());
                Ok(Self::Native(Box::new(session.map_err(|e| Fail::at(model.path(), e))?)))
            }
            #[cfg(feature = "onnx")]
            Backend::Tract => {
                let planned = model.tract()?;
                let output = planned.output_shape().ok_or_else(|| {
                    let dims = planned.output_dims();
                    Fail::at(
                        model.path(),
                        format!("an output of dimensions {dims:?} is neither [N, C] nor [N, C, H, W]"),
                    )
                })?;
                let (kernels, states) = (kernels.clone(), std::sync::Mutex::default());
                let path = model.path().to_path_buf();
                Ok(Self::Tract(Box::new(Tract { model: planned, path, output, kernels, states })))
            }
            #[cfg(not(feature = "onnx"))]
            Backend::Tract => Err(Fail::lacks("tract", "onnx")),
        }
    }

    /// A runner on the native backend where the model lowers, else on tract.
    pub(crate) fn best(model: &'a Loaded, kernels: &Simd) -> Result<Self, Fail> {
        #[cfg(feature = "onnx")]
        if model.why_not_native().is_some() {
            return Self::on(Backend::Tract, model, kernels);
        }
        Self::on(Backend::Native, model, kernels)
    }

    /// Tells that [`Runner::best`] took tract, and why. To be called once nothing is left to refuse.
    pub(crate) fn tell_fallback(&self, model: &Loaded) {
        #[cfg(feature = "onnx")]
        if let (Self::Tract(_), Some(why)) = (self, model.why_not_native()) {
            ui::note(format!("backend tract: {why}"));
        }
        #[cfg(not(feature = "onnx"))]
        let _ = model;
    }

    /// Which backend it is.
    pub(crate) const fn backend(&self) -> Backend {
        match self {
            Self::Native(_) => Backend::Native,
            #[cfg(feature = "onnx")]
            Self::Tract(_) => Backend::Tract,
        }
    }

    /// The order in which it takes and gives elements.
    pub(crate) const fn layout(&self) -> Layout {
        match self {
            Self::Native(_) => Layout::Hwc,
            #[cfg(feature = "onnx")]
            Self::Tract(_) => Layout::Chw,
        }
    }

    /// Shape of one picture.
    pub(crate) fn input(&self) -> Shape {
        match self {
            Self::Native(session) => session.input(),
            #[cfg(feature = "onnx")]
            Self::Tract(tract) => tract.model.input_shape(),
        }
    }

    /// Shape of one output.
    pub(crate) fn output(&self) -> Shape {
        match self {
            Self::Native(session) => session.output(),
            #[cfg(feature = "onnx")]
            Self::Tract(tract) => tract.output,
        }
    }

    /// The number of classes, where the output is a vector.
    pub(crate) fn classes(&self) -> Option<usize> {
        let Shape { h, w, c } = self.output();
        (h == 1 && w == 1).then_some(c as usize)
    }

    /// Outputs (`[n][output]`) of the pictures `x` (`[n][input]`), both in [`Runner::layout`].
    pub(crate) fn run(&self, x: &[f32], out: &mut [f32]) -> Result<(), Fail> {
        match self {
            Self::Native(session) => session.infer(x, out).map_err(|e| Fail::Other(e.to_string())),
            #[cfg(feature = "onnx")]
            Self::Tract(tract) => tract.run(x, out).map_err(|e| Fail::at(&tract.path, e)),
        }
    }

    /// Logits of the pictures `x` (`[n][h][w][c]`), and what the tripwire says of each; nothing of any without a tripwire.
    pub(crate) fn watch(&self, x: &[f32], logits: &mut [f32]) -> Result<Vec<Alarm>, Fail> {
        let session = match self {
            Self::Native(session) => session,
            #[cfg(feature = "onnx")]
            Self::Tract(_) => return self.run_as(Layout::Hwc, x, logits).map(|()| Vec::new()),
        };
        let Some(threshold) = session.threshold() else {
            return self.run_as(Layout::Hwc, x, logits).map(|()| Vec::new());
        };
        let mut scores = vec![0.0; x.len() / session.input().len()];
        match session.infer_watched(x, logits, &mut scores) {
            Ok(()) => Ok(scores.into_iter().map(|score| Alarm::of(score, threshold)).collect()),
            Err(Error::NotFinite) => Err(Fail::input("the answers of head or witness are not finite")),
            Err(e) => Err(Fail::Other(e.to_string())),
        }
    }

    /// As [`Runner::run`], with elements in the order `layout` on both sides.
    pub(crate) fn run_as(&self, layout: Layout, x: &[f32], out: &mut [f32]) -> Result<(), Fail> {
        if layout == self.layout() {
            return self.run(x, out);
        }
        let turned = turn(self.input(), layout, x);
        self.run(&turned, out)?;
        if self.classes().is_none() {
            let back = turn(self.output(), self.layout(), out);
            out.copy_from_slice(&back);
        }
        Ok(())
    }
}

#[cfg(feature = "onnx")]
impl Tract {
    /// Pictures are spread over threads; each part takes a state of its own, made once.
    fn run(&self, x: &[f32], out: &mut [f32]) -> Result<(), OnnxError> {
        let (len, to) = (self.model.input_shape().len(), self.output.len());
        let chunk = (x.len() / len).div_ceil(self.kernels.threads()).max(1);
        let failed = std::sync::Mutex::new(None);
        self.kernels.for_each(x.chunks(chunk * len).zip(out.chunks_mut(chunk * to)).collect(), |(x, out)| {
            let mut part = || {
                let states = || self.states.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let kept = states().pop();
                let mut state = kept.map_or_else(|| self.model.state(), Ok)?;
                x.chunks_exact(len).zip(out.chunks_exact_mut(to)).try_for_each(|(x, out)| state.run(x, out))?;
                states().push(state);
                Ok(())
            };
            if let Err(e) = part() {
                *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(e);
            }
        });
        failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// Pictures from one layout to the other.
fn turn(shape: Shape, from: Layout, x: &[f32]) -> Vec<f32> {
    let (area, c) = ((shape.h * shape.w) as usize, shape.c as usize);
    let (outer, inner) = match from {
        Layout::Hwc => (c, area),
        Layout::Chw => (area, c),
    };
    let mut turned = Vec::with_capacity(x.len());
    for picture in x.chunks_exact(area * c) {
        for o in 0..outer {
            turned.extend((0..inner).map(|i| picture[i * outer + o]));
        }
    }
    turned
}
