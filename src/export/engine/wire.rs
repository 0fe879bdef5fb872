//! The wire format of protocol buffers, for messages that are written by hand: the size of a point matters, and how often it is
//! copied.

/// A number.
pub fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Bytes of a number.
pub fn varint_len(n: usize) -> usize {
    (usize::BITS - (n | 1).leading_zeros()).div_ceil(7) as usize
}

/// Bytes of a field with `len` bytes of content, for field numbers below 16.
pub fn field_len(len: usize) -> usize {
    1 + varint_len(len) + len
}

/// What stands before the content of such a field: a text, bytes or a message.
pub fn put_head(out: &mut Vec<u8>, field: u8, len: usize) {
    out.push(field << 3 | 2);
    put_varint(out, len as u64);
}

/// Such a field; none if it is empty, which is the same.
pub fn put_text(out: &mut Vec<u8>, field: u8, text: &str) {
    if !text.is_empty() {
        put_head(out, field, text.len());
        out.extend_from_slice(text.as_bytes());
    }
}

/// A field with eight bytes of which it is known what they are later: returns where they lie.
pub fn put_fixed64(out: &mut Vec<u8>, field: u8, bits: u64) -> usize {
    out.push(field << 3 | 1);
    out.extend_from_slice(&bits.to_le_bytes());
    out.len() - 8
}

/// A field with a small number.
pub fn put_small(out: &mut Vec<u8>, field: u8, n: u8) {
    out.push(field << 3);
    put_varint(out, n.into());
}
