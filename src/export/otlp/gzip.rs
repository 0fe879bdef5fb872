//! gzip, as far as it takes to send: what repeats is named instead (LZ77), in the codes that every reader knows beforehand.
//! Metrics repeat themselves so much that codes of their own would gain little.

/// Farthest back that something repeated may lie.
const WINDOW: usize = 32 << 10;
/// Longest and shortest of what is named.
const LONGEST: usize = 258;
const SHORTEST: usize = 4;
/// Places that are remembered: by a hash of the bytes there, the last of each.
const HASH_BITS: u32 = 13;

/// Shortest length of each code from 257 on, and shortest distance of each code; what is beyond goes into extra bits.
const LENGTHS: [usize; 29] =
    [3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258];
const DISTANCES: [usize; 30] = [
    1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145,
    8193, 12289, 16385, 24577,
];

/// Bits, the lowest of each byte first.
struct Bits {
    out: Vec<u8>,
    held: u32,
    count: u32,
}

impl Bits {
    /// A number, its lowest bit first.
    fn number(&mut self, n: usize, bits: u32) {
        self.held |= (n as u32) << self.count;
        self.count += bits;
        while self.count >= 8 {
            self.out.push(self.held as u8);
            self.held >>= 8;
            self.count -= 8;
        }
    }

    /// A code, its highest bit first.
    fn code(&mut self, code: usize, bits: u32) {
        self.number(((code as u32).reverse_bits() >> (32 - bits)) as usize, bits);
    }

    /// A byte (below 256), the end of the data (256) or a length.
    fn symbol(&mut self, symbol: usize) {
        match symbol {
            0..=143 => self.code(0x30 + symbol, 8),
            144..=255 => self.code(0x190 + symbol - 144, 9),
            256..=279 => self.code(symbol - 256, 7),
            _ => self.code(0xc0 + symbol - 280, 8),
        }
    }

    /// So many bytes as they stood so far back.
    fn repeat(&mut self, length: usize, distance: usize) {
        let last = |bases: &[usize], n: usize| bases.partition_point(|base| *base <= n) - 1;
        let i = last(&LENGTHS, length);
        self.symbol(257 + i);
        let extra = if (8..28).contains(&i) { (i as u32 - 4) / 4 } else { 0 };
        self.number(length - LENGTHS[i], extra);
        let i = last(&DISTANCES, distance);
        self.code(i, 5);
        self.number(distance - DISTANCES[i], (i as u32 / 2).saturating_sub(1));
    }
}

/// `data` as a gzip file.
pub fn gzip(data: &[u8]) -> Vec<u8> {
    // No name, no time, an unknown system.
    let head = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let mut bits = Bits { out: head.to_vec(), held: 0, count: 0 };
    // One block, the last, in the codes known beforehand.
    bits.number(1, 1);
    bits.number(1, 2);
    let mut seen = vec![usize::MAX; 1 << HASH_BITS];
    let mut at = 0;
    while at < data.len() {
        let repeated = data.get(at..at + SHORTEST).and_then(|next| {
            let hash = hash(next);
            let before = std::mem::replace(&mut seen[hash], at);
            let there = data.get(before..)?;
            let length = data[at..].iter().zip(there).take(LONGEST).take_while(|(a, b)| a == b).count();
            (length >= SHORTEST && at - before <= WINDOW).then_some((length, at - before))
        });
        match repeated {
            Some((length, distance)) => {
                bits.repeat(length, distance);
                // What begins within may be repeated as well.
                for i in at + 1..at + length {
                    if let Some(next) = data.get(i..i + SHORTEST) {
                        seen[hash(next)] = i;
                    }
                }
                at += length;
            }
            None => {
                bits.symbol(data[at].into());
                at += 1;
            }
        }
    }
    bits.symbol(256);
    bits.number(0, 7); // the rest of the last byte
    let mut out = bits.out;
    out.extend(crc32(data).to_le_bytes());
    out.extend((data.len() as u32).to_le_bytes());
    out
}

fn hash(bytes: &[u8]) -> usize {
    let n = bytes.iter().fold(0u32, |n, b| n << 8 | u32::from(*b));
    (n.wrapping_mul(0x9E37_79B1) >> (32 - HASH_BITS)) as usize
}

/// The check sum at the end of a gzip file.
fn crc32(data: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
    let nibbles: [u32; 16] = std::array::from_fn(|n| (0..4).fold(n as u32, |crc, _| step(crc)));
    let add = |crc: u32, nibble: u8| crc >> 4 ^ nibbles[((crc ^ u32::from(nibble)) & 15) as usize];
    !data.iter().fold(!0, |crc, byte| add(add(crc, *byte), *byte >> 4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::random::Random;
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// As the program gzip reads it.
    fn read(file: &[u8]) -> Vec<u8> {
        let mut gzip =
            Command::new("gzip").arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("gzip");
        let mut stdin = gzip.stdin.take().unwrap();
        let file = file.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&file));
        let out = gzip.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        assert!(out.status.success());
        out.stdout
    }

    #[test]
    fn gzip_reads_it() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        let mut random = Random(1);
        let noise: Vec<u8> = (0..70_000).map(|_| random.below(256) as u8).collect();
        let few: Vec<u8> = (0..70_000).map(|_| random.below(3) as u8).collect();
        let far: Vec<u8> = [&noise[..40_000], &noise[..7300], &noise[..300]].concat();
        for data in [&b""[..], b"a", b"abcabcabcabcabc", &[0; 1000], &[255; 259], &noise, &few, &far] {
            assert_eq!(read(&gzip(data)), data, "{} bytes", data.len());
        }
        let of_words = "ebpf_page_cache_adds_total cause read ".repeat(500);
        assert!(gzip(of_words.as_bytes()).len() * 20 < of_words.len());
    }
}
