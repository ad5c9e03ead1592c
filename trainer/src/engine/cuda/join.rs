//! Launches of what a ResNet has beside convolutions and norms: norms joined by a skip behind a ReLU, and a max pool.

use super::args::{Divisor, JoinedArgs, PoolArgs};
use super::backend::{Kernel, Region};
use super::builder::{Builder, Map, NormState, Sums, pixels, quads, stretches};
use crate::engine::EngineError;
use stemguard_runtime::kernels::ConvShape;
use stemguard_runtime::shape::Shape;

impl Builder<'_> {
    /// A map with what two norms make of it, or one and a skip: arguments of both passes.
    fn joined_args(
        &self,
        h: &Map,
        state: NormState,
        skip: Option<(&Map, Option<NormState>)>,
        y: &Map,
    ) -> Result<JoinedArgs, EngineError> {
        let all = self.n * pixels(h.shape);
        let (stretch, blocks) = stretches(all);
        Ok(JoinedArgs {
            h: h.at(),
            norm: state.affine(),
            skip: skip.map_or(0, |(s, _)| s.at()),
            skip_norm: skip.and_then(|(_, s)| s).map_or(0, |s| s.affine()),
            y: y.at(),
            sums: 0,
            skip_sums: 0,
            quads: quads(h.shape)?,
            pixels: all as i32,
            stretch: stretch as i32,
            blocks: blocks as i32,
            len: (all * h.shape.c as usize / 4) as i32,
        })
    }

    /// `relu(norm(h) + skip)`; the skip as it is or behind a norm of its own, or none.
    pub(super) fn joined(
        &mut self,
        h: &Map,
        state: NormState,
        skip: Option<(&Map, Option<NormState>)>,
    ) -> Result<Map, EngineError> {
        let y = self.map(h.shape)?;
        let args = self.joined_args(h, state, skip, &y)?;
        self.launch(Kernel::JoinedForward, [(args.len as usize).div_ceil(256), 1, 1], &args);
        Ok(y)
    }

    /// Its backward pass: the gradient `dz` is brought in front of the ReLU in place; the sums that the norm needs, and those of the
    /// skip's norm where it has one.
    pub(super) fn joined_backward(
        &mut self,
        h: &Map,
        state: NormState,
        skip: Option<(&Map, Option<NormState>)>,
        dz: &Map,
    ) -> Result<(Sums, Option<Sums>), EngineError> {
        let mut args = self.joined_args(h, state, skip, dz)?;
        let (c, blocks) = (h.shape.c as usize, args.blocks as usize);
        let sums = self.sums(c, blocks)?;
        let of_skip = match skip {
            Some((_, Some(_))) => Some(self.sums(c, blocks)?),
            _ => None,
        };
        args.sums = sums.region.address;
        args.skip_sums = of_skip.map_or(0, |s| s.region.address);
        self.launch(Kernel::JoinedBackward, [blocks, 1, 1], &args);
        Ok((sums, of_skip))
    }

    /// A max pool over `relu(norm(h))`: its output, and where each value stood.
    pub(super) fn pool(&mut self, g: &ConvShape, h: &Map, state: NormState) -> Result<(Map, Region), EngineError> {
        let y = self.map(g.y)?;
        let index = self.take(self.n * g.y.len())?;
        let args = self.pool_args(g, h, state, &y, index, g.y);
        self.launch(Kernel::PoolForward, [(args.len as usize).div_ceil(256), 1, 1], &args);
        Ok((y, index))
    }

    /// Its backward pass: the gradient with respect to what the pool saw.
    pub(super) fn pool_backward(
        &mut self,
        g: &ConvShape,
        h: &Map,
        state: NormState,
        index: Region,
        dy: &Map,
    ) -> Result<Map, EngineError> {
        let dh = self.map(g.x)?;
        let args = PoolArgs { dh: dh.at(), ..self.pool_args(g, h, state, dy, index, g.x) };
        quads(g.x)?;
        self.launch(Kernel::PoolBackward, [(args.len as usize).div_ceil(1024), 1, 1], &args);
        Ok(dh)
    }

    fn pool_args(&self, g: &ConvShape, h: &Map, state: NormState, y: &Map, index: Region, over: Shape) -> PoolArgs {
        PoolArgs {
            h: h.at(),
            norm: state.affine(),
            y: y.at(),
            index: index.address,
            dh: 0,
            channels: Divisor::new(g.x.c as usize),
            rows: Divisor::new(over.h as usize),
            columns: Divisor::new(over.w as usize),
            ih: g.x.h as i32,
            iw: g.x.w as i32,
            oh: g.y.h as i32,
            ow: g.y.w as i32,
            kernel: g.window.kernel[0] as i32,
            stride: g.window.stride[0] as i32,
            pad: g.window.pad[0] as i32,
            len: (self.n * over.len()) as i32,
        }
    }
}
