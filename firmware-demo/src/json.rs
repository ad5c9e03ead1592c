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
    pub fn number(&mut self, key: &str, n: u64) -> &mut Self {
        // Sixteen bits at a time: a division of 64 bits would be a kilobyte.
        let mut limbs: [u32; 4] = core::array::from_fn(|i| (n >> (48 - 16 * i)) as u32 & 0xffff);
        let mut digits = [0; 20];
        let mut from = digits.len();
        while let Some(digit) = from.checked_sub(1).and_then(|at| digits.get_mut(at)) {
            let mut rest = 0;
            for limb in &mut limbs {
                let value = rest << 16 | *limb;
                (*limb, rest) = (value / 10, value % 10);
            }
            (*digit, from) = (b'0' + rest as u8, from - 1);
            if limbs == [0; 4] {
                break;
            }
        }
        self.put(",").key(key);
        digits.iter().skip(from).for_each(|&digit| self.push(digit));
        self
    }

    /// Adds 32 bits as eight hexadecimal digits.
    pub fn digest(&mut self, key: &str, bits: u32) -> &mut Self {
        self.put(",").key(key).put("\"");
        for i in 0..8 {
            self.push(match (bits >> (28 - 4 * i)) as u8 & 15 {
                digit @ 0..=9 => b'0' + digit,
                digit => b'a' + digit - 10,
            });
        }
        self.put("\"")
    }

    /// Adds a text of plain ASCII letters.
    pub fn text(&mut self, key: &str, text: &str) -> &mut Self {
        self.put(",").key(key).quoted(text)
    }

    /// The line, ended.
    pub fn end(&mut self) -> &str {
        self.put("}\n");
        &self.0
    }

    fn push(&mut self, ascii: u8) {
        let _ = self.0.push(char::from(ascii));
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
        let mut line = Line::new("stage", "a");
        line.number("n", 0).number("m", u64::MAX).digest("crc", 0x000a_f019).text("b", "c");
        assert_eq!(
            line.end(),
            "{\"stage\":\"a\",\"n\":0,\"m\":18446744073709551615,\"crc\":\"000af019\",\"b\":\"c\"}\n"
        );
    }
}
