//! GGUF headers that lie, and blocks decoded by hand.

use std::fs;

use tempfile::TempDir;

use super::super::*;

/// A GGUF file put together by hand.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn header(num_tensors: u64, num_keys: u64) -> Self {
        let mut bytes = Self::default();
        bytes.0.extend(b"GGUF");
        bytes.u32(3).u64(num_tensors).u64(num_keys);
        bytes
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.u64(text.len() as u64);
        self.0.extend(text.as_bytes());
        self
    }

    fn open(&self) -> Result<Gguf, Error> {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("model.gguf");
        fs::write(&path, &self.0).unwrap();
        Gguf::open(&path)
    }

    fn refusal(&self) -> String {
        self.open().unwrap_err().to_string()
    }
}

/// What is said of a file with one key and one tensor that goes on like this.
fn with_key(fill: impl Fn(&mut Bytes) -> &mut Bytes) -> String {
    fill(&mut Bytes::header(1, 1)).refusal()
}

#[test]
fn every_number_of_a_header_is_held_against_the_file() {
    let mut old = Bytes::header(0, 0);
    old.0[4] = 1;
    assert!(old.refusal().contains("at byte 4: version 1, expected 2 or 3"));
    for (said, words) in [
        (Bytes(b"GG".to_vec()).refusal(), "the magic takes 4 bytes, and 2 are left"),
        (with_key(|b| b.u64(u64::MAX)), "a key takes 18446744073709551615 bytes"),
        (with_key(|b| b.text("k").u32(77)), "k has type 77"),
        (with_key(|b| b.text("k").u32(9).u32(5).u64(1 << 62)), "bytes, and 0 are left"),
        (with_key(|b| b.text("k").u32(9).u32(9).u64(1)), "k is an array of type 9"),
        (with_key(|b| b.text("k").u32(9).u32(8).u64(u64::MAX)), "k takes 8 bytes"),
        (with_key(|b| b.text("general.alignment").u32(4).u32(3)), "expected a power of two"),
    ] {
        assert!(said.contains(words), "{words} is not in\n{said}");
    }
}

/// A file of one tensor, with 64 bytes behind its header.
fn one_tensor(dims: &[u64], code: u32, offset: u64) -> Result<Gguf, Error> {
    let mut bytes = Bytes::header(1, 0);
    bytes.text("x").u32(dims.len() as u32);
    for &dim in dims {
        bytes.u64(dim);
    }
    bytes.u32(code).u64(offset);
    bytes.0.resize(bytes.0.len().next_multiple_of(32) + 64, 0);
    bytes.open()
}

#[test]
fn a_tensor_lies_within_its_file() {
    let said = |dims: &[u64], code, offset| one_tensor(dims, code, offset).unwrap_err().to_string();
    assert_eq!(one_tensor(&[16], 0, 0).unwrap().values("x").unwrap(), [0.0; 16]);
    assert!(said(&[17], 0, 0).contains("tensor x does not lie within the file"));
    assert!(said(&[16], 0, 32).contains("does not lie within the file"));
    assert!(said(&[1], 0, u64::MAX).contains("does not lie within the file"));
    assert!(said(&[1 << 40, 1 << 40], 0, 0).contains("no whole number of blocks"));
    assert!(said(&[31], 8, 0).contains("no whole number of blocks"));
    assert!(said(&[0], 0, 0).contains("a dim that is 0"));
    assert!(said(&[1; 5], 0, 0).contains("has 5 dims"));
    assert!(said(&[32], 12, 0).contains("has type 12, expected F32"));
}

#[test]
fn blocks_are_decoded_as_ggml_defines_them() {
    let scale = half::f16::from_f32(0.5).to_le_bytes();
    let least = half::f16::from_f32(-3.0).to_le_bytes();
    let mut quants = [0x80; 16];
    quants[0] = 0x2f;
    let signed: Vec<u8> = (0..32_u8).map(|i| i.wrapping_sub(16)).collect();
    // The lower half of the first byte is value 0, its upper half value 16.
    for (kind, bytes, first, middle, last) in [
        (BlockType::Q4_0, [&scale[..], &quants].concat(), 3.5, -3.0, 0.0),
        (BlockType::Q4_1, [&scale[..], &least, &quants].concat(), 4.5, -2.0, 1.0),
        (BlockType::Q8_0, [&scale[..], &signed].concat(), -8.0, 0.0, 7.5),
    ] {
        let values = kind.decode(&bytes);
        assert_eq!(values.len(), 32);
        assert_eq!((values[0], values[16], values[31]), (first, middle, last), "{kind:?}");
    }
}
