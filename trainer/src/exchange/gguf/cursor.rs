//! Reading a GGUF header: every length is compared with what is left of the file before it is
//! believed, and arrays are left where they are.

use std::ops::Range;
use std::path::Path;

use super::super::Error;

/// A value of the metadata. Texts and arrays are where they are in the file.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An unsigned integer of any width.
    Unsigned(u64),
    /// A signed integer of any width.
    Signed(i64),
    /// An `f32`.
    Single(f32),
    /// An `f64`.
    Double(f64),
    /// True or false.
    Flag(bool),
    /// The bytes of a text.
    Text(Range<usize>),
    /// An array of texts.
    Texts {
        /// How many.
        count: u64,
        /// The texts with their lengths.
        range: Range<usize>,
    },
    /// An array of 32-bit integers.
    Integers(Range<usize>),
    /// An array of another type, which nothing here reads.
    Other,
}

/// Type codes of values.
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a value of a fixed size.
fn size_of_code(code: u32) -> Option<usize> {
    match code {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// A place in a file that is read from its beginning.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, position: 0 }
    }

    /// Reads a part of the file that was read before.
    pub(super) fn within(path: &'a Path, bytes: &'a [u8], range: Range<usize>) -> Self {
        Self { path, bytes: &bytes[..range.end], position: range.start }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn refuse(&self, byte: usize, reason: impl Into<String>) -> Error {
        Error::Gguf { path: self.path.to_owned(), byte, reason: reason.into() }
    }

    pub(super) fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], Error> {
        let end = self.position.checked_add(count).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            let left = self.bytes.len() - self.position;
            let reason = format!("{what} takes {count} bytes, and {left} are left of the file");
            return Err(self.refuse(self.position, reason));
        };
        let taken = &self.bytes[self.position..end];
        self.position = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Error> {
        Ok(self.take(N, what)?.try_into().expect("so many bytes were taken"))
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, Error> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, Error> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Where the bytes of a text are.
    pub(super) fn text(&mut self, what: &str) -> Result<Range<usize>, Error> {
        let length = self.u64(what)?;
        let start = self.position;
        // Longer than any file, should it not fit.
        self.take(usize::try_from(length).unwrap_or(usize::MAX), what)?;
        Ok(start..self.position)
    }

    /// A text that is a name of something.
    pub(super) fn name(&mut self, what: &str) -> Result<String, Error> {
        let start = self.position;
        let range = self.text(what)?;
        match std::str::from_utf8(&self.bytes[range]) {
            Ok(name) => Ok(name.to_owned()),
            Err(_) => Err(self.refuse(start, format!("{what} is not UTF-8"))),
        }
    }

    /// The value of a key, with its type before it.
    pub(super) fn value(&mut self, key: &str) -> Result<Value, Error> {
        let start = self.position;
        let code = self.u32(key)?;
        match code {
            TEXT => self.text(key).map(Value::Text),
            ARRAY => self.values(key),
            _ => self.number(code, key)?.ok_or_else(|| {
                self.refuse(start, format!("{key} has type {code}, expected 0 to 12"))
            }),
        }
    }

    fn number(&mut self, code: u32, key: &str) -> Result<Option<Value>, Error> {
        Ok(Some(match code {
            0 => Value::Unsigned(u8::from_le_bytes(self.array(key)?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array(key)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array(key)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array(key)?).into()),
            4 => Value::Unsigned(u32::from_le_bytes(self.array(key)?).into()),
            5 => Value::Signed(i32::from_le_bytes(self.array(key)?).into()),
            6 => Value::Single(f32::from_le_bytes(self.array(key)?)),
            7 => Value::Flag(self.array::<1>(key)? != [0]),
            10 => Value::Unsigned(u64::from_le_bytes(self.array(key)?)),
            11 => Value::Signed(i64::from_le_bytes(self.array(key)?)),
            12 => Value::Double(f64::from_le_bytes(self.array(key)?)),
            _ => return Ok(None),
        }))
    }

    /// An array: passed over, with its place noted if its elements may be asked for.
    fn values(&mut self, key: &str) -> Result<Value, Error> {
        let start = self.position;
        let code = self.u32(key)?;
        let count = self.u64(key)?;
        let first = self.position;
        if code == TEXT {
            for _ in 0..count {
                self.text(key)?;
            }
            return Ok(Value::Texts { count, range: first..self.position });
        }
        let Some(size) = size_of_code(code) else {
            return Err(self.refuse(start, format!("{key} is an array of type {code}")));
        };
        let bytes = usize::try_from(count).ok().and_then(|count| count.checked_mul(size));
        self.take(bytes.unwrap_or(usize::MAX), key)?;
        let range = first..self.position;
        Ok(if matches!(code, 4 | 5) { Value::Integers(range) } else { Value::Other })
    }
}
