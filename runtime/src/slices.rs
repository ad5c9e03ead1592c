//! Slices taken apart with no way to give up: on a microcontroller a panic is a reset, and the messages of one take flash.
//!
//! Lengths are checked at the doors ([`crate::head::infer`], [`crate::replace::fit`], the constructors of nets and artifacts). Behind
//! them a piece that is not there is empty, or shorter; builds with assertions tell.

use core::mem::take;

/// The first `len` values.
pub(crate) fn start<T>(x: &[T], len: usize) -> &[T] {
    debug_assert!(len <= x.len());
    x.get(..len).unwrap_or(x)
}

/// The first `len` values.
pub(crate) fn start_mut<T>(x: &mut [T], len: usize) -> &mut [T] {
    split_mut(x, len).0
}

/// `len` values from `at` on.
pub(crate) fn piece<T>(x: &[T], at: usize, len: usize) -> &[T] {
    let piece = x.get(at..).and_then(|x| x.get(..len));
    debug_assert!(piece.is_some());
    piece.unwrap_or_default()
}

/// `len` values from `at` on.
pub(crate) fn piece_mut<T>(x: &mut [T], at: usize, len: usize) -> &mut [T] {
    let piece = x.get_mut(at..).and_then(|x| x.get_mut(..len));
    debug_assert!(piece.is_some());
    piece.unwrap_or_default()
}

/// The first `at` values, and the rest.
pub(crate) fn split<T>(x: &[T], at: usize) -> (&[T], &[T]) {
    debug_assert!(at <= x.len());
    x.split_at_checked(at).unwrap_or((x, &[]))
}

/// The first `at` values, and the rest.
pub(crate) fn split_mut<T>(x: &mut [T], at: usize) -> (&mut [T], &mut [T]) {
    debug_assert!(at <= x.len());
    let at = at.min(x.len());
    x.split_at_mut_checked(at).unwrap_or_default()
}

/// Cuts the next `len` values off.
pub(crate) fn cut<'a, T>(rest: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    let (head, tail) = split_mut(take(rest), len);
    *rest = tail;
    head
}

/// Cuts the next `len` values off a shared slice.
pub(crate) fn part<'a, T>(rest: &mut &'a [T], len: usize) -> &'a [T] {
    let (head, tail) = split(rest, len);
    *rest = tail;
    head
}

/// Whole rows of `width` values, a width of 0 being one of 1.
pub(crate) fn rows<T>(x: &[T], width: usize) -> Rows<'_, T> {
    Rows { rest: x, width: width.max(1) }
}

/// Whole rows of `width` values, a width of 0 being one of 1.
pub(crate) fn rows_mut<T>(x: &mut [T], width: usize) -> RowsMut<'_, T> {
    RowsMut { rest: x, width: width.max(1) }
}

/// As `core::slice::ChunksExact`, without a division.
#[derive(Clone)]
pub(crate) struct Rows<'a, T> {
    rest: &'a [T],
    width: usize,
}

impl<'a, T> Iterator for Rows<'a, T> {
    type Item = &'a [T];

    #[inline]
    fn next(&mut self) -> Option<&'a [T]> {
        let (row, rest) = self.rest.split_at_checked(self.width)?;
        self.rest = rest;
        Some(row)
    }
}

/// As [`Rows`], to be written.
pub(crate) struct RowsMut<'a, T> {
    rest: &'a mut [T],
    width: usize,
}

impl<'a, T> Iterator for RowsMut<'a, T> {
    type Item = &'a mut [T];

    #[inline]
    fn next(&mut self) -> Option<&'a mut [T]> {
        let (row, rest) = take(&mut self.rest).split_at_mut_checked(self.width)?;
        self.rest = rest;
        Some(row)
    }
}

/// Value number `i`.
pub(crate) fn at<T: Copy + Default>(x: &[T], i: usize) -> T {
    debug_assert!(i < x.len());
    x.get(i).copied().unwrap_or_default()
}

/// Copies equally many values.
pub(crate) fn copy<T: Copy>(from: &[T], to: &mut [T]) {
    debug_assert_eq!(from.len(), to.len());
    to.iter_mut().zip(from).for_each(|(to, &from)| *to = from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_those_asked_for() {
        let mut x = [1, 2, 3, 4, 5];
        assert_eq!((start(&x, 2), piece(&x, 1, 3), at(&x, 4)), (&[1, 2][..], &[2, 3, 4][..], 5));
        assert_eq!(split(&x, 5), (&[1, 2, 3, 4, 5][..], &[][..]));
        assert!(rows(&x, 2).eq([[1, 2], [3, 4]]) && rows(&x, 0).eq([[1], [2], [3], [4], [5]]));
        let rest = &mut &mut x[..];
        copy(&[7, 8], cut(rest, 2));
        rows_mut(rest, 2).for_each(|row| row.reverse());
        start_mut(piece_mut(&mut x, 1, 2), 1).fill(0);
        assert_eq!(x, [7, 0, 4, 3, 5]);
        let rest = &mut &x[..];
        assert_eq!((part(rest, 4), part(rest, 1), part(rest, 0)), (&[7, 0, 4, 3][..], &[5][..], &[][..]));
    }
}
