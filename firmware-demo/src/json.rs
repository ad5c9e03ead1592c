//! Lines of JSON without an allocator and without the standard formatter, which would cost as much flash as the kernels.

use heapless::String;

/// One line: an object, built field by field. What no longer fits is left out.
#[derive(Debug)]
pub struct Line(String<256>);

impl Line {
    /// An object whose first field is `key`, a text.
    pub fn new(key: &str, text: &str) -> Self {
        let mut line = Self(String::new());
        line.put("{").key(key).quoted(text);
        line
    }

    /// Adds a number.
    #[must_use]
    pub fn number(mut self, key: &str, mut n: u64) -> Self {
        let mut digits = [0; 20];
        let mut from = digits.len();
        while let Some(digit) = from.checked_sub(1).and_then(|at| digits.get_mut(at)) {
            *digit = b'0' + (n % 10) as u8;
            (n, from) = (n / 10, from - 1);
            if n == 0 {
                break;
            }
        }
        let digits = digits.get(from..).and_then(|digits| core::str::from_utf8(digits).ok());
        self.put(",").key(key).put(digits.unwrap_or_default());
        self
    }

    /// Adds 32 bits as eight hexadecimal digits.
    #[must_use]
    pub fn digest(mut self, key: &str, bits: u32) -> Self {
        let digits: [u8; 8] = core::array::from_fn(|i| match (bits >> (28 - 4 * i)) as u8 & 15 {
            digit @ 0..=9 => b'0' + digit,
            digit => b'a' + digit - 10,
        });
        self.put(",").key(key).quoted(core::str::from_utf8(&digits).unwrap_or_default());
        self
    }

    /// Adds a text of plain ASCII letters.
    #[must_use]
    pub fn text(mut self, key: &str, text: &str) -> Self {
        self.put(",").key(key).quoted(text);
        self
    }

    /// The line, ended.
    #[must_use]
    pub fn end(mut self) -> String<256> {
        self.put("}\n");
        self.0
    }

    fn put(&mut self, text: &str) -> &mut Self {
        let _ = self.0.push_str(text);
        self
    }

    fn key(&mut self, key: &str) -> &mut Self {
        self.quoted(key).put(":")
    }

    fn quoted(&mut self, text: &str) -> &mut Self {
        self.put("\"").put(text).put("\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_object() {
        let line =
            Line::new("stage", "a").number("n", 0).number("m", u64::MAX).digest("crc", 0x000a_f019).text("b", "c");
        assert_eq!(
            line.end(),
            "{\"stage\":\"a\",\"n\":0,\"m\":18446744073709551615,\"crc\":\"000af019\",\"b\":\"c\"}\n"
        );
    }
}
