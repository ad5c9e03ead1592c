//! One picture file to RGB bytes of the size wanted: any format and size with the feature `data`, without it binary PPM that has that
//! size already.

use std::fs;
use std::io::{self, BufReader};
use std::path::Path;
use std::prelude::v1::*;

use super::{DataError, MAX_SIDE};

/// The most bytes that one file or its decoder takes.
#[cfg(feature = "data")]
const MOST_BYTES: u64 = 256 << 20;

/// Reads one PNG, JPEG or PNM file as RGB, resized to `size` (height, width), into `out` (`[h][w][3]`). Transparency is dropped, and an
/// orientation that a camera noted (EXIF) is not applied, as in most training sets.
/// Without the feature `data`: one binary PPM file (P6, 8 bits) of exactly that size.
///
/// # Errors
/// [`DataError`] naming the file; [`DataError::Mismatch`] where `out` has another length.
pub fn read_picture(path: &Path, size: (usize, usize), out: &mut [u8]) -> Result<(), DataError> {
    if Some(out.len()) != size.0.checked_mul(size.1).and_then(|n| n.checked_mul(3)) {
        return Err(DataError::Mismatch("a picture's size and its buffer differ"));
    }
    let file = fs::File::open(path).map_err(|error| DataError::Io { path: path.to_path_buf(), error })?;
    decode(path, BufReader::new(file), size, out)
}

#[cfg(feature = "data")]
fn decode(path: &Path, source: impl io::Read, size: (usize, usize), out: &mut [u8]) -> Result<(), DataError> {
    use io::Read as _;
    let refused = |why: String| DataError::Picture { path: path.to_path_buf(), why };
    let mut bytes = Vec::new();
    let failed = |error| DataError::Io { path: path.to_path_buf(), error };
    source.take(MOST_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    if is_cut_short(&bytes) {
        return Err(refused("truncated".into()));
    }
    let source = io::Cursor::new(&bytes);
    let mut reader = image::ImageReader::new(source).with_guessed_format().map_err(|e| refused(e.to_string()))?;
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(MAX_SIDE as u32);
    limits.max_image_height = Some(MAX_SIDE as u32);
    limits.max_alloc = Some(MOST_BYTES);
    reader.limits(limits);
    let picture = reader.decode().map_err(|e| refused(e.to_string()))?.into_rgb8();
    let (h, w) = (picture.height() as usize, picture.width() as usize);
    if h == 0 || w == 0 {
        return Err(refused("a side of zero pixels".into()));
    }
    if (h, w) == size {
        out.copy_from_slice(picture.as_raw());
        return Ok(());
    }
    resize(path, picture.as_raw(), (h, w), size, out)
}

/// Whether a file is a JPEG whose last scan has no end, which its decoder would make up (ITU-T T.81, B.1.1.3: entropy-coded data hold no
/// marker).
#[cfg(feature = "data")]
fn is_cut_short(bytes: &[u8]) -> bool {
    let last = |bytes: &[u8], marker: u8| bytes.windows(2).rposition(|pair| pair == [0xff, marker]);
    bytes.starts_with(&[0xff, 0xd8]) && last(bytes, 0xda).is_none_or(|scan| last(&bytes[scan..], 0xd9).is_none())
}

#[cfg(not(feature = "data"))]
fn decode(path: &Path, source: impl io::BufRead, size: (usize, usize), out: &mut [u8]) -> Result<(), DataError> {
    ppm(path, source, size, out)
}

/// Reads a binary PPM of exactly this size (<https://netpbm.sourceforge.net/doc/ppm.html>).
#[cfg(any(not(feature = "data"), test))]
fn ppm(path: &Path, source: impl io::BufRead, size: (usize, usize), out: &mut [u8]) -> Result<(), DataError> {
    use io::Read as _;
    /// The most bytes of a header, comments included.
    const HEADER: usize = 4096;
    let refused = |why: &str| DataError::Picture { path: path.to_path_buf(), why: why.into() };
    let mut bytes = Vec::new();
    let failed = |error| DataError::Io { path: path.to_path_buf(), error };
    source.take((HEADER + 3 * MAX_SIDE * MAX_SIDE) as u64).read_to_end(&mut bytes).map_err(failed)?;
    let Some(mut rest) = bytes.strip_prefix(b"P6") else {
        return Err(DataError::Lacks { path: path.to_path_buf(), what: "formats other than binary PPM (P6)" });
    };
    let mut numbers = [0usize; 3];
    for number in &mut numbers {
        rest = rest.trim_ascii_start();
        while let Some(comment) = rest.strip_prefix(b"#") {
            let end = comment.iter().position(|&b| b == b'\n').unwrap_or(comment.len());
            rest = comment.get(end..).unwrap_or_default().trim_ascii_start();
        }
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        let (digits, after) = rest.split_at(digits);
        let text = core::str::from_utf8(digits).unwrap_or_default();
        *number = text.parse().map_err(|_| refused("its header is malformed"))?;
        rest = after;
    }
    let [w, h, most] = numbers;
    if most != 255 {
        return Err(refused("its largest value is not 255"));
    }
    if (h, w) != size {
        return Err(another_size(path, (h, w), size));
    }
    let pixels = rest.get(1..).and_then(|pixels| pixels.get(..out.len())).ok_or_else(|| refused("truncated"))?;
    out.copy_from_slice(pixels);
    Ok(())
}

/// Resizes one RGB picture of `from` (height, width) to `to` by triangle filter.
///
/// # Errors
/// [`DataError::Mismatch`] where `pixels` is not of that size.
#[cfg(feature = "data")]
pub(super) fn resize(
    _: &Path,
    pixels: &[u8],
    from: (usize, usize),
    to: (usize, usize),
    out: &mut [u8],
) -> Result<(), DataError> {
    use image::{ImageBuffer, Rgb, imageops};
    let view = ImageBuffer::<Rgb<u8>, &[u8]>::from_raw(from.1 as u32, from.0 as u32, pixels);
    let view = view.ok_or(DataError::Mismatch("a picture's size and its buffer differ"))?;
    let resized = imageops::resize(&view, to.1 as u32, to.0 as u32, imageops::FilterType::Triangle);
    out.copy_from_slice(resized.as_raw());
    Ok(())
}

/// Refuses: this build does not resize.
///
/// # Errors
/// [`DataError::Picture`] naming the file.
#[cfg(not(feature = "data"))]
pub(super) fn resize(
    path: &Path,
    _: &[u8],
    from: (usize, usize),
    to: (usize, usize),
    _: &mut [u8],
) -> Result<(), DataError> {
    Err(another_size(path, from, to))
}

#[cfg(any(not(feature = "data"), test))]
fn another_size(path: &Path, (h, w): (usize, usize), (needed_h, needed_w): (usize, usize)) -> DataError {
    let why = format!("{w}x{h} where {needed_w}x{needed_h} is needed; this build does not resize");
    DataError::Picture { path: path.to_path_buf(), why }
}

#[cfg(all(test, feature = "data"))]
mod tests {
    use super::*;
    use crate::data::folder::tests::ppm as picture;
    use crate::net::tests::cases;
    use proptest::prelude::*;

    #[test]
    fn plain_ppm_is_read_as_the_library_reads_it() {
        let whole = picture(8, 8, [48, 49, 32]);
        let commented = [&b"P6 # a comment\n# another\n8\t8\n255\n"[..], &whole[11..]].concat();
        for bytes in [whole.clone(), commented] {
            let (mut one, mut other) = (vec![0; 192], vec![1; 192]);
            decode(Path::new("x"), io::Cursor::new(&bytes), (8, 8), &mut one).expect("read");
            ppm(Path::new("x"), &bytes[..], (8, 8), &mut other).expect("read");
            assert_eq!(one, other);
        }
        let refused = |bytes: &[u8], size| {
            ppm(Path::new("x.ppm"), bytes, size, &mut vec![0; size.0 * size.1 * 3]).expect_err("refused").to_string()
        };
        assert!(refused(&whole[..100], (8, 8)).contains("x.ppm: not a readable picture: truncated"));
        assert!(refused(b"P5 1 1 255 x", (1, 1)).contains("lacks formats other than binary PPM"));
        assert!(refused(b"P6 1 one 255 x", (1, 1)).contains("malformed"));
        assert!(refused(b"P6 1 1 65535 xxxxxx", (1, 1)).contains("not 255"));
        assert!(refused(&whole, (4, 8)).contains("8x8 where 8x4 is needed"));
    }

    proptest! {
        #![proptest_config(cases(300))]
        #[test]
        fn mutated_ppm_never_panics(
            cut in 0usize..300,
            ascii in any::<bool>(),
            edits in prop::collection::vec((0usize..24, any::<u8>()), 0..6),
        ) {
            let mut bytes = picture(8, 8, [48, 49, 32]);
            if ascii {
                bytes[1] = b'3';
            }
            for (at, value) in edits {
                bytes[at] = value;
            }
            bytes.truncate(cut);
            let mut out = vec![0; 4 * 4 * 3];
            let _ = decode(Path::new("x"), io::Cursor::new(&bytes), (4, 4), &mut out);
            let _ = ppm(Path::new("x"), &bytes[..], (4, 4), &mut out);
        }
    }
}
