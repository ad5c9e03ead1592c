//! NumPy `.npy` arrays, alone or as members of an archive. Headers are read by a parser that takes time and room in proportion to
//! them, and nothing is allocated that a header claims and the file does not hold.

use std::io::{self, Read};
use std::prelude::v1::*;

use super::MAX_BYTES;

/// The longest array header read, in bytes. NumPy writes about 128.
const MAX_HEADER: usize = 4096;

/// An array of numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers {
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Whether the first dimension runs fastest (Fortran order) instead of the last.
    pub fortran: bool,
    /// Type of the elements in the file, such as `i1` or `f4`.
    pub descr: String,
    /// Elements in the order of the file, rounded to `f32`; as many as the dimensions say.
    pub values: Vec<f32>,
}

/// Reads the bytes of a `.npy` file of booleans, integers of 1 to 8 bytes, or floats of 4 or 8.
///
/// # Errors
/// What is wrong with it.
pub fn read_npy(mut bytes: &[u8]) -> Result<Numbers, String> {
    numbers(read_array(&mut bytes, &|header: &Header| {
        let known = matches!((header.kind, header.size), ('i' | 'u', _) | ('f', 4 | 8) | ('b', 1));
        if known { Ok(()) } else { Err(format!("numbers of type `{}`, not integers or floats", header.descr())) }
    })?)
}

/// Reads a `.npy` file of `f32` in C order whose dimensions `accept` agrees to; of its data nothing is read before.
///
/// # Errors
/// What is wrong with it, or what `accept` says.
pub fn read_npy_f32(file: &mut impl Read, accept: &impl Fn(&[usize]) -> Result<(), String>) -> Result<Numbers, String> {
    numbers(read_array(file, &|header: &Header| {
        if (header.kind, header.size) != ('f', 4) {
            return Err(format!("elements of type `{}` where float32 (`f4`) is needed", header.descr()));
        }
        if header.fortran {
            return Err("the array is in Fortran order; store it in C order".into());
        }
        accept(&header.sides()?)
    })?)
}

fn numbers(Array { header, data }: Array) -> Result<Numbers, String> {
    let number = |bytes: &[u8]| match header.kind {
        'f' => float(bytes, header.big) as f32,
        kind => integer(bytes, kind == 'i', header.big) as f32,
    };
    Ok(Numbers {
        shape: header.sides()?,
        fortran: header.fortran,
        descr: header.descr(),
        values: data.chunks_exact(header.size).map(number).collect(),
    })
}

/// One array, its data as bytes in the order stored.
pub(super) struct Array {
    pub(super) header: Header,
    pub(super) data: Vec<u8>,
}

/// Reads one `.npy` member. The reader is driven to its end, where the archive checks its CRC.
pub(super) fn read_array(
    file: &mut impl Read,
    accept: &impl Fn(&Header) -> Result<(), String>,
) -> Result<Array, String> {
    let text = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => "a NumPy array that is cut short".to_owned(),
        _ => error.to_string(),
    };
    let mut start = [0; 12];
    file.read_exact(&mut start[..10]).map_err(text)?;
    if &start[..6] != b"\x93NUMPY" {
        return Err("not a NumPy array".into());
    }
    let len = match start[6] {
        1 => usize::from(u16::from_le_bytes([start[8], start[9]])),
        2 | 3 => {
            file.read_exact(&mut start[10..]).map_err(text)?;
            u32::from_le_bytes([start[8], start[9], start[10], start[11]]) as usize
        }
        version => return Err(format!("unknown format version {version}")),
    };
    if len > MAX_HEADER {
        return Err(format!("a header of {len} bytes, more than {MAX_HEADER}"));
    }
    let mut header = vec![0; len];
    file.read_exact(&mut header).map_err(text)?;
    let header = std::str::from_utf8(&header).ok().and_then(Header::parse).ok_or("the header does not parse")?;
    let bytes = header.bytes().filter(|&b| b <= MAX_BYTES).ok_or("more than the limit of 8 GiB")?;
    accept(&header)?;
    // Grows with what is there, not with what the header claims.
    let mut data = Vec::new();
    file.by_ref().take(bytes).read_to_end(&mut data).map_err(text)?;
    if data.len() as u64 != bytes {
        return Err(format!("truncated: {} bytes where {bytes} are needed", data.len()));
    }
    if file.read(&mut [0]).map_err(text)? != 0 {
        return Err("longer than its header says".into());
    }
    Ok(Array { header, data })
}

/// What a `.npy` header says.
#[derive(Debug, PartialEq)]
pub(super) struct Header {
    /// `u`, `i`, `f`, `U` and so on, as in NumPy's type strings.
    pub(super) kind: char,
    /// Bytes of one element, 1 or more.
    pub(super) size: usize,
    /// Most significant byte first.
    pub(super) big: bool,
    pub(super) fortran: bool,
    pub(super) shape: Vec<u64>,
}

impl Header {
    /// Parses `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`. `None` for anything else.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let body = text.trim().strip_prefix('{')?.strip_suffix('}')?;
        let value = |key: &str| {
            let quoted = [format!("'{key}'"), format!("\"{key}\"")];
            let (_, rest) = quoted.iter().find_map(|q| body.split_once(q.as_str()))?;
            rest.trim_start().strip_prefix(':').map(str::trim_start)
        };
        let descr = value("descr")?;
        let quote = descr.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let (descr, _) = descr[1..].split_once(quote)?;
        let fortran = value("fortran_order")?;
        let fortran = match (fortran.starts_with("True"), fortran.starts_with("False")) {
            (false, false) => return None,
            (fortran, _) => fortran,
        };
        let (shape, _) = value("shape")?.strip_prefix('(')?.split_once(')')?;
        let shape: Option<Vec<u64>> =
            shape.split(',').map(str::trim).filter(|s| !s.is_empty()).map(|s| s.parse().ok()).collect();
        let mut letters = descr.chars();
        let order = letters.next().filter(|c| matches!(c, '<' | '>' | '|' | '='))?;
        let kind = letters.next().filter(char::is_ascii_alphabetic)?;
        let size: usize = if kind == 'O' { 8 } else { letters.as_str().parse().ok()? };
        let size = if kind == 'U' { size.checked_mul(4)? } else { size };
        let fits = match kind {
            'i' | 'u' => matches!(size, 1 | 2 | 4 | 8),
            'f' => matches!(size, 2 | 4 | 8 | 16),
            _ => (1..=1 << 20).contains(&size),
        };
        let big = order == '>' || (order == '=' && cfg!(target_endian = "big"));
        fits.then_some(Self { kind, size, big, fortran, shape: shape? })
    }

    /// The dimensions as this machine counts.
    fn sides(&self) -> Result<Vec<usize>, String> {
        let sides: Option<_> = self.shape.iter().map(|&side| usize::try_from(side).ok()).collect();
        sides.ok_or_else(|| "dimensions beyond this machine".into())
    }

    /// Bytes of the data, if they can be counted.
    pub(super) fn bytes(&self) -> Option<u64> {
        self.shape.iter().try_fold(self.size as u64, |product, &side| product.checked_mul(side))
    }

    /// The type as NumPy writes it, for messages.
    pub(super) fn descr(&self) -> String {
        if self.kind == 'O' { "object".into() } else { format!("{}{}", self.kind, self.size) }
    }
}

/// An integer of 1 to 8 bytes.
pub(super) fn integer(bytes: &[u8], signed: bool, big: bool) -> i128 {
    let first = if big { bytes.first() } else { bytes.last() };
    let fill = if signed && first.is_some_and(|b| b & 0x80 != 0) { -1i128 } else { 0 };
    let push = |value: i128, &b: &u8| (value << 8) | i128::from(b);
    if big { bytes.iter().fold(fill, push) } else { bytes.iter().rev().fold(fill, push) }
}

/// A float of 4 or 8 bytes.
pub(super) fn float(bytes: &[u8], big: bool) -> f64 {
    let bits = integer(bytes, false, big);
    if bytes.len() == 4 { f64::from(f32::from_bits(bits as u32)) } else { f64::from_bits(bits as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), data].concat()
    }

    #[test]
    fn numbers_of_every_type_are_read_in_either_order() {
        let of = |descr: &str, fortran: &str, shape: &str, data: &[u8]| {
            read_npy(&npy(&format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n"), data))
        };
        let found = of("|i1", "False", "(2, 2)", &[1, 255, 3, 128]).expect("bytes");
        assert_eq!((found.shape, found.values), (vec![2, 2], vec![1.0, -1.0, 3.0, -128.0]));
        assert_eq!(of(">u2", "False", "(1,)", &[1, 2]).expect("big").values, [258.0]);
        assert_eq!(of("<f8", "False", "()", &0.5f64.to_le_bytes()).expect("double").values, [0.5]);
        let floats: Vec<u8> = [1.0f32, f32::NAN].iter().flat_map(|v| v.to_le_bytes()).collect();
        let found = of("<f4", "True", "(2, 1)", &floats).expect("floats");
        assert!(found.fortran && found.descr == "f4" && found.values[0] == 1.0 && found.values[1].is_nan());
        for (descr, shape, data, why) in [
            ("<c8", "(1,)", &[0; 8][..], "type `c8`"),
            ("|u1", "(3,)", &[0; 2], "truncated"),
            ("|u1", "(1,)", &[0; 2], "longer"),
            ("<f8", "(4611686018427387904, 4)", &[], "limit"),
            ("|u1", "[[[[", &[], "parse"),
        ] {
            let e = of(descr, "False", shape, data).expect_err("refused");
            assert!(e.contains(why), "{e}");
        }
        let floats =
            npy("{'descr': '>f4', 'fortran_order': False, 'shape': (1, 2), }", &[0x3f, 0, 0, 0, 0xbf, 0x80, 0, 0]);
        let pair = |shape: &[usize]| if shape == [1, 2] { Ok(()) } else { Err("no pair".into()) };
        assert_eq!(read_npy_f32(&mut &floats[..], &pair).expect("floats").values, [0.5, -1.0]);
        assert_eq!(read_npy_f32(&mut &floats[..], &|_| Err("no pair".into())).expect_err("refused"), "no pair");
        let cut = read_npy_f32(&mut &floats[..30], &pair).expect_err("refused");
        assert!(cut.contains("cut short"), "{cut}");
        // Nested lists, which take a recursive parser without lookahead 2^n steps.
        let deep = format!(
            "{{'descr': '|u1', 'fortran_order': False, 'shape': (0,), 'x': {}{}}}",
            "[".repeat(60),
            "]".repeat(60)
        );
        assert!(read_npy(&npy(&deep, &[])).expect("read past").values.is_empty());
        assert!(read_npy(b"no array").is_err() && read_npy(b"").is_err());
    }
}
