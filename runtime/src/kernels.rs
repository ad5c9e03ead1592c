//! The kernels: what a stem, a head and the trainer's layers are made of.
//!
//! [`scalar`] holds the forward kernels of every operation of a net, and [`mod@reference`] the training kernels, both written
//! to be read: they are the oracle. `simd` (feature `std`) does the same work with vectors and threads; which
//! instruction set it uses is chosen once, at run time (`isa`). All layouts are NHWC; a batch is `n` pictures, one after
//! the other.
//!
//! [`int8`] holds the kernels of nets in 8 bits, where all implementations give the same bits: `int8_dsp` is for Cortex-M4 and
//! M7, `int8_host` for hosts.
//!
//! `unsafe` lives below this module only.

pub mod int8;
#[cfg(any(cortex_m_dsp, test))]
#[allow(unsafe_code)]
pub mod int8_dsp;
pub mod reference;
pub mod scalar;

#[cfg(feature = "std")]
#[allow(unsafe_code)]
pub(crate) mod arch;
#[cfg(feature = "std")]
pub(crate) mod buffer;
#[cfg(feature = "std")]
#[allow(unsafe_code)]
pub(crate) mod image;
#[cfg(feature = "std")]
#[allow(unsafe_code)]
pub(crate) mod int8_host;
#[cfg(feature = "std")]
#[allow(unsafe_code)]
pub mod isa;
#[cfg(feature = "std")]
#[allow(unsafe_code)]
pub mod picture;
#[cfg(feature = "std")]
#[allow(unsafe_code)]
pub(crate) mod pixelwise;
#[cfg(feature = "std")]
#[allow(unsafe_code)]
pub mod simd;
#[cfg(feature = "std")]
#[allow(unsafe_code)]
mod simd_gradient;
#[cfg(feature = "std")]
mod simd_join;
#[cfg(feature = "std")]
#[allow(unsafe_code)]
pub(crate) mod team;
#[cfg(feature = "std")]
mod transposed;
#[cfg(feature = "std")]
#[allow(unsafe_code)]
pub(crate) mod vector;
#[cfg(feature = "std")]
#[allow(unsafe_code)]
mod window;
#[cfg(feature = "std")]
#[allow(unsafe_code)]
pub(crate) mod winograd;

#[cfg(all(test, feature = "std"))]
pub(crate) mod tests;

use crate::error::{Error, Result};
use crate::net::Window;
use crate::shape::Shape;

/// A convolution without groups: `x` to `y` through `window`. Weights are `[ky][kx][x.c][y.c]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Input of one picture.
    pub x: Shape,
    /// Output of one picture.
    pub y: Shape,
    /// Kernel, stride, padding.
    pub window: Window,
}

impl ConvShape {
    /// A square kernel of side `k`, stride `s`, padding `p` on every side, `cout` output channels.
    ///
    /// # Errors
    /// [`Error::BadSetting`] where the window does not fit the input or a shape is out of range.
    pub fn square(x: Shape, cout: u32, k: u32, s: u32, p: u32) -> Result<Self> {
        let side = |len: u32| -> Option<u32> { len.checked_add(2 * p)?.checked_sub(k)?.checked_div(s)?.checked_add(1) };
        let fail = Error::BadSetting("convolution window");
        let y = Shape::new(side(x.h).ok_or(fail)?, side(x.w).ok_or(fail)?, cout);
        if !x.is_valid() || !y.is_valid() || k == 0 || p >= k {
            return Err(fail);
        }
        Ok(Self { x, y, window: Window { kernel: [k, k], stride: [s, s], pad: [p; 4] } })
    }

    /// Whether the output is what the window makes of the input, and both can be: what kernels rely on.
    pub fn fits(&self) -> bool {
        let of = self.window.output(self.x.h, self.x.w);
        self.x.is_valid() && self.y.is_valid() && of == Some([self.y.h, self.y.w])
    }

    /// Elements of the weights.
    pub const fn weights(&self) -> usize {
        self.window.kernel[0] as usize * self.window.kernel[1] as usize * self.x.c as usize * self.y.c as usize
    }
}

/// What happens to a convolution's input on its way in: `leaky(x * scale + shift)` by channel. Padding comes after it and
/// stays zero.
#[derive(Clone, Copy, Debug)]
pub struct Prologue<'a> {
    /// `[cin]`
    pub scale: &'a [f32],
    /// `[cin]`
    pub shift: &'a [f32],
    /// Slope of the leaky ReLU below zero, 0..=1; 1 is no activation.
    pub slope: f32,
}

/// What a join adds to its main branch: a map as it is, or normed.
#[derive(Clone, Copy, Debug)]
pub struct Skip<'a> {
    /// As the main branch, `[pixels][c]`.
    pub x: &'a [f32],
    /// Norm by channel; its slope is not used.
    pub pre: Option<&'a Prologue<'a>>,
}

/// A gradient with respect to a convolution's output, as it comes in: `dy`, or `k1 * dy + k2 * x + k3` by channel: the
/// backward pass of a batch norm that follows, applied on the fly.
#[derive(Clone, Copy, Debug)]
pub struct OutputGradient<'a> {
    /// `[n][y]`
    pub dy: &'a [f32],
    /// The norm's input `[n][y]` and `k1, k2, k3` as `[3][cout]`.
    pub norm: Option<(&'a [f32], &'a [f32])>,
}

/// The training kernels, over a batch of `n` pictures. Buffers written are overwritten. Callers own the shapes: slices shorter than
/// their documented length panic or are computed with as far as they go, and the fast kernels refuse shapes that do not fit
/// ([`ConvShape::fits`]) by a panic.
pub trait Kernels {
    /// `y = conv(prologue(x)) + bias + add`; `sums` takes the sums of `y` and `y * y` by channel (`[2 * cout]`).
    #[allow(clippy::too_many_arguments)]
    fn conv_forward(
        &self,
        g: &ConvShape,
        n: usize,
        x: &[f32],
        pre: Option<&Prologue<'_>>,
        w: &[f32],
        bias: Option<&[f32]>,
        add: Option<&[f32]>,
        y: &mut [f32],
        sums: Option<&mut [f64]>,
    );

    /// The backward pass of [`Kernels::conv_forward`]: `dw`, `db`, and, where asked for, the gradient `dz` with respect to the
    /// prologue's affine output (to `x` itself without prologue) plus `add`, with the sums of `dz` and `dz * x` by channel
    /// (`[2 * cin]`, only with a prologue).
    #[allow(clippy::too_many_arguments)]
    fn conv_backward(
        &self,
        g: &ConvShape,
        n: usize,
        x: &[f32],
        pre: Option<&Prologue<'_>>,
        w: &[f32],
        dy: OutputGradient<'_>,
        add: Option<&[f32]>,
        dz: Option<&mut [f32]>,
        dw: &mut [f32],
        db: &mut [f32],
        sums: Option<&mut [f64]>,
    );

    /// Transposed convolution: `y` (`[n][g.x]`) is the data gradient of the convolution `g` at `x` (`[n][g.y]`), plus `bias`
    /// (`[g.x.c]`).
    fn deconv_forward(&self, g: &ConvShape, n: usize, x: &[f32], w: &[f32], bias: &[f32], y: &mut [f32]);

    /// The backward pass of [`Kernels::deconv_forward`]: `dy` is `[n][g.x]`, `dx` `[n][g.y]`, `dw` as `w`, `db` `[g.x.c]`.
    #[allow(clippy::too_many_arguments)]
    fn deconv_backward(
        &self,
        g: &ConvShape,
        n: usize,
        x: &[f32],
        w: &[f32],
        dy: &[f32],
        dx: Option<&mut [f32]>,
        dw: &mut [f32],
        db: &mut [f32],
    );

    /// Sums of `x` and `x * x` by channel (`[2 * c]`) over `x` as pixels of `c` channels.
    fn channel_sums(&self, c: usize, x: &[f32], sums: &mut [f64]);

    /// `dz = k1 * dz + k2 * x + k3 + add` by channel, in place: a batch norm's input gradient. `k` is `[3][c]`.
    fn norm_gradient(&self, c: usize, dz: &mut [f32], x: &[f32], k: &[f32], add: Option<&[f32]>);

    /// `pooled[picture][c] = mean over its pixels of prologue(x)`, pictures of `pixels` pixels.
    fn pool_forward(&self, c: usize, pixels: usize, x: &[f32], pre: &Prologue<'_>, pooled: &mut [f32]);

    /// `dz = dpooled * leaky'(prologue's affine of x)` by picture and channel, with the sums of `dz` and `dz * x` by channel.
    #[allow(clippy::too_many_arguments)]
    fn pool_backward(
        &self,
        c: usize,
        pixels: usize,
        x: &[f32],
        pre: &Prologue<'_>,
        dpooled: &[f32],
        dz: &mut [f32],
        sums: &mut [f64],
    );

    /// `y = leaky(h * scale + shift + skip)` by channel over `h` as pixels of `c` channels, where `skip` is nothing, a map, or
    /// a map normed in the same way.
    fn join_forward(&self, c: usize, h: &[f32], pre: &Prologue<'_>, skip: Option<Skip<'_>>, y: &mut [f32]);

    /// `dz = dy * leaky'` in place, at the sum that [`Kernels::join_forward`] saw; the sums of `dz` and `dz * h` by channel
    /// (`[2 * c]`) and, where the skip is normed, those of `dz` and `dz * skip` behind them (`[4 * c]` together).
    fn join_backward(
        &self,
        c: usize,
        h: &[f32],
        pre: &Prologue<'_>,
        skip: Option<Skip<'_>>,
        dz: &mut [f32],
        sums: &mut [f64],
    );

    /// `y` (`[n][g.y]`): largest of `prologue(x)` in each window of `g`, channel by channel (`g.x.c` is `g.y.c`); padding does
    /// not take part. `index` (as `y`) tells its place in the picture, in elements; the first of equals.
    fn max_pool_forward(
        &self,
        g: &ConvShape,
        n: usize,
        x: &[f32],
        pre: Option<&Prologue<'_>>,
        y: &mut [f32],
        index: &mut [u32],
    );

    /// The gradient `da` (`[n][g.x]`) with respect to `prologue(x)` of [`Kernels::max_pool_forward`].
    fn max_pool_backward(&self, g: &ConvShape, n: usize, dy: &[f32], index: &[u32], da: &mut [f32]);
}
