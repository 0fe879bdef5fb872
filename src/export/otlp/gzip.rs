//! gzip of what is sent.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;

/// `data` as a gzip file, without a name or a time. Metrics repeat themselves so much that the fastest level gains nearly all.
pub fn gzip(data: &[u8]) -> io::Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(data)?;
    gzip.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn gzip_reads_it() {
        let data = "ebpf_page_cache_adds_total cause read ".repeat(500);
        let file = gzip(data.as_bytes()).unwrap();
        assert!(file.len() * 20 < data.len(), "{} bytes", file.len());
        let mut gzip =
            Command::new("gzip").arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("gzip");
        gzip.stdin.take().unwrap().write_all(&file).unwrap();
        assert_eq!(gzip.wait_with_output().unwrap().stdout, data.as_bytes());
    }
}
