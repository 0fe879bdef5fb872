//! Passwords and tokens in files: one rule for all of them.

use std::fmt::Display;
use std::path::Path;

use super::confine;
use crate::config::read_file;

/// Most bytes of one, with an end of its line.
const MAX_BYTES: u64 = 4096 + 2;

/// What is wrong with the file of a key of the configuration.
pub fn wrong(key: &str, path: &Path, why: &dyn Display) -> String {
    format!("{key}: {}: {why}", path.display())
}

/// The secret in the file of a key: its one line.
pub fn read(key: &str, path: &Path) -> Result<String, String> {
    let wrong = |why: &dyn Display| wrong(key, path, why);
    let bytes = read_file(path, MAX_BYTES).map_err(|e| wrong(&confine::explained(e)))?;
    let text = String::from_utf8(bytes).map_err(|_| wrong(&"is not UTF-8 text"))?;
    let line = text.trim_end_matches(['\r', '\n']);
    match line {
        "" => Err(wrong(&"is empty")),
        _ if line.chars().any(char::is_control) => Err(wrong(&"has more than one line, or control characters")),
        _ => Ok(line.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_the_one_line_of_its_file() {
        let path = std::env::temp_dir().join(format!("ebpf-sidecar-secret-{}", std::process::id()));
        for (content, secret) in [
            (&b"a b "[..], Ok("a b ")),
            ("pässword\r\n".as_bytes(), Ok("pässword")),
            (b"x\n\n", Ok("x")),
            (b"", Err("is empty")),
            (b"\n", Err("is empty")),
            (b"x\ny\n", Err("more than one line")),
            (b"x\0", Err("control characters")),
            (b"\xff", Err("UTF-8")),
        ] {
            std::fs::write(&path, content).unwrap();
            let read = read("a.key", &path);
            match secret {
                Ok(secret) => assert_eq!(read.as_deref(), Ok(secret)),
                Err(why) => assert!(read.is_err_and(|e| e.starts_with("a.key: ") && e.contains(why)), "{why}"),
            }
        }
        std::fs::remove_file(&path).unwrap();
        assert!(read("a.key", &path).is_err());
    }
}
