//! Reads the file: walks the YAML along the table of keys. Errors are raised where they are met, so that
//! serde_yaml adds the line.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::keys::{self, KEYS, Key, Kind};
use super::{Config, ConfigError, nearest, not_allowed, shorten};

/// The keys that the file gives, with their text; null gives nothing.
pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Vec<(&'static Key, String)>, ConfigError> {
    let fail = |line, problem: String| ConfigError(format!("{}: {problem}", place(path, line)));

    let text = std::str::from_utf8(bytes).map_err(|e| {
        let at = e.valid_up_to();
        fail(Some(line_at(bytes, at)), format!("byte {:#04x} is not UTF-8 text", bytes[at]))
    })?;
    // serde_yaml gives these no line.
    if let Some((at, c)) = text.char_indices().find(|(at, c)| !readable(*at, *c)) {
        let problem = format!("character U+{:04X} is not allowed in YAML", u32::from(c));
        return Err(fail(Some(line_at(bytes, at)), problem));
    }
    for (i, document) in serde_yaml::Deserializer::from_str(text).enumerate() {
        if i > 0 {
            let line = document.deserialize_any(Nothing).err().and_then(|e| line(&e));
            return Err(fail(line, "a second YAML document; allowed: one".into()));
        }
        IgnoredAny::deserialize(document)
            .map_err(|e| fail(line(&e), format!("not valid YAML: {}", without_place(&e))))?;
    }

    let mut walk = Walk::default();
    match walk.run(text) {
        Ok(()) => Ok(walk.found),
        Err(e) => Err(fail(line(&e), walk.problem.unwrap_or_else(|| without_place(&e)))),
    }
}

/// The line of the value that a readable file gives to the key with this path.
pub(super) fn line_of(bytes: &[u8], path: &str) -> Option<usize> {
    let mut walk = Walk { stop_at: keys::find(path).map(|k| k.path), ..Walk::default() };
    walk.run(std::str::from_utf8(bytes).ok()?).err().and_then(|e| line(&e))
}

/// A place in the file, as messages begin with it.
pub(super) fn place(path: &Path, line: Option<usize>) -> String {
    match line {
        Some(line) => format!("{}:{line}", path.display()),
        None => path.display().to_string(),
    }
}

fn line(e: &serde_yaml::Error) -> Option<usize> {
    e.location().map(|l| l.line())
}

fn line_at(bytes: &[u8], at: usize) -> usize {
    1 + bytes[..at].iter().filter(|b| **b == b'\n').count()
}

/// serde_yaml's message without the line and column at its end.
pub(super) fn without_place(e: &serde_yaml::Error) -> String {
    let place = e.location().map(|l| format!(" at line {} column {}", l.line(), l.column()));
    shorten(&e.to_string().replacen(&place.unwrap_or_default(), "", 1), 300)
}

/// Whether YAML allows the character, at this byte of the file, outside of an escape.
fn readable(at: usize, c: char) -> bool {
    match c {
        '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' => true,
        '\u{feff}' => at == 0,
        '\u{fffe}' | '\u{ffff}' => false,
        _ => c >= '\u{a0}',
    }
}

/// A walk through the file.
#[derive(Default)]
struct Walk {
    found: Vec<(&'static Key, String)>,
    /// What is wrong, when the error raised is ours.
    problem: Option<String>,
    /// A key at which to stop with an error: its place then is the key's.
    stop_at: Option<&'static str>,
    /// Takes values to see whether they are allowed.
    scratch: Config,
}

impl Walk {
    fn run(&mut self, text: &str) -> Result<(), serde_yaml::Error> {
        let section = Section { walk: self, path: String::new() };
        section.deserialize(serde_yaml::Deserializer::from_str(text))
    }

    fn fail<E: serde::de::Error>(&mut self, problem: String) -> E {
        self.problem = Some(problem);
        E::custom("")
    }

    /// Accepts the text of `key`, of which `value` is new.
    fn check<E: serde::de::Error>(&mut self, key: &'static Key, text: &str, value: &str) -> Result<(), E> {
        if self.stop_at == Some(key.path) {
            return Err(E::custom(""));
        }
        (key.set)(&mut self.scratch, text)
            .map_err(|why| self.fail(format!("{}: {}", key.path, not_allowed(key, value, why))))
    }
}

/// A mapping or null.
struct Section<'a> {
    walk: &'a mut Walk,
    path: String,
}

impl<'de> DeserializeSeed<'de> for Section<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Section<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a section with {}", keys::names_in(&self.path).join(", "))
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(path) = map.next_key_seed(Name { walk: self.walk, section: &self.path, seen: &mut seen })? {
            let walk = &mut *self.walk;
            match keys::find(&path) {
                Some(key) => map.next_value_seed(Leaf { walk, key })?,
                None => map.next_value_seed(Section { walk, path })?,
            }
        }
        Ok(())
    }
}

/// The name of a key or section; gives its path.
struct Name<'a> {
    walk: &'a mut Walk,
    section: &'a str,
    seen: &'a mut HashSet<String>,
}

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = String;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<String, D::Error> {
        d.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "one of {}", keys::names_in(self.section).join(", "))
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<String, E> {
        let dot = if self.section.is_empty() { "" } else { "." };
        let path = format!("{}{dot}{name}", self.section);
        let names = keys::names_in(self.section);
        if name.contains('.') && keys::find(&path).is_some() {
            let nested = path.replace('.', ": {");
            let braces = "}".repeat(path.matches('.').count());
            let why = "keys are written in sections, not with dots";
            return Err(self.walk.fail(format!("{path}: {why}; allowed: {nested}: …{braces}, or a line for each")));
        }
        if !names.contains(&name) {
            return Err(self.walk.fail(format!(
                "{}: unknown key; the nearest is {}; allowed here: {}",
                shorten(&path, 80).escape_debug(),
                nearest_path(&path, name),
                names.join(", "),
            )));
        }
        if !self.seen.insert(name.into()) {
            return Err(self.walk.fail(format!("{path}: given twice; allowed: each key once")));
        }
        Ok(path)
    }
}

/// The known path that is most like the unknown `path`; one that ends in the same `name` is very much so.
fn nearest_path(path: &str, name: &str) -> &'static str {
    if let Some(key) = KEYS.iter().find(|k| k.path.ends_with(&format!(".{name}"))) {
        return key.path;
    }
    let sections = KEYS.iter().flat_map(|k| k.path.match_indices('.').map(|(dot, _)| &k.path[..dot]));
    nearest(path, KEYS.iter().map(|k| k.path).chain(sections))
}

/// The value of a key.
struct Leaf<'a> {
    walk: &'a mut Walk,
    key: &'static Key,
}

impl<'de> DeserializeSeed<'de> for Leaf<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Leaf<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key.allowed)
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        match self.key.kind {
            Kind::List => d.deserialize_seq(self),
            Kind::OneOrMore => d.deserialize_any(self),
            // As text, whatever YAML thinks of it: 0x10 can be the name of a process.
            Kind::Scalar | Kind::Secret => d.deserialize_str(self),
        }
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.walk.check(self.key, text, text)?;
        self.walk.found.push((self.key, text.into()));
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut text = String::new();
        let Leaf { walk, key } = self;
        while let Some(()) = seq.next_element_seed(Element { walk, key, text: &mut text })? {}
        if text.is_empty() && (key.set)(&mut Config::default(), "").is_err() {
            return Err(walk.fail(format!("{}: [] is not allowed; allowed: {}", key.path, key.allowed)));
        }
        walk.found.push((key, text));
        Ok(())
    }
}

/// An element of a list; checked together with those before it, for duplicates.
struct Element<'a> {
    walk: &'a mut Walk,
    key: &'static Key,
    text: &'a mut String,
}

impl<'de> DeserializeSeed<'de> for Element<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_str(self)
    }
}

impl Visitor<'_> for Element<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key.allowed)
    }

    fn visit_str<E: serde::de::Error>(self, element: &str) -> Result<(), E> {
        if !self.text.is_empty() {
            self.text.push(',');
        }
        self.text.push_str(element);
        self.walk.check(self.key, self.text, element)
    }
}

/// Refuses everything: its error has the place of what was refused.
struct Nothing;

impl Visitor<'_> for Nothing {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing")
    }
}
