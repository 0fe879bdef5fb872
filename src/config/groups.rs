//! Groups of files, by patterns of their paths: `{catalog}/data/{group}/seg-{segment}/shard-{}/{}/{kind}.bin`.
//!
//! A pattern is compared with the end of a path, a component with each between its slashes. In one:
//!
//! | | takes |
//! |---|---|
//! | `{}` or `*` | anything, but at least a byte |
//! | `{name}` | the same, which is then the group's label `name` |
//! | `{name:digits}`, `{:digits}` | digits alone |
//! | `{name=a\|b}`, `{=a\|b}` | one of these texts |
//!
//! The first pattern that takes a path decides. Of several ways to take it, the one in which what comes first is shortest.

use std::fmt;

/// As many components of a path are known at most.
pub const MAX_COMPONENTS: usize = 8;

/// What labels cannot be called, since series have them already.
const TAKEN: [&str; 6] = ["cause", "le", "op", "preset", "node", "quantile"];

/// A part of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Any(Takes, Option<usize>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Takes {
    Anything,
    Digits,
    One(Vec<String>),
}

/// One pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    preset: &'static str,
    text: String,
    /// From the last one to the first.
    components: Vec<Vec<Part>>,
    labels: Vec<String>,
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Pattern {
    /// Reads a pattern. An error: what is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut labels = Vec::new();
        if text.starts_with('/') {
            return Err("it is compared with the end of a path, and cannot begin with /".into());
        }
        let components: Result<Vec<_>, String> = text.split('/').map(|c| component(c, &mut labels)).collect();
        let mut components = components?;
        if components.len() > MAX_COMPONENTS {
            return Err(format!("it has {} components, and of a path {MAX_COMPONENTS} are known", components.len()));
        }
        components.reverse();
        Ok(Self { preset: "", text: text.to_owned(), components, labels })
    }

    /// The labels of a path whose components are these, the last one first, if the pattern takes it.
    fn labels_of(&self, path: &[&[u8]]) -> Option<Vec<(String, String)>> {
        if path.len() < self.components.len() {
            return None;
        }
        let mut found: Vec<&[u8]> = vec![b""; self.labels.len()];
        for (parts, name) in self.components.iter().zip(path) {
            if !takes(parts, name, &mut found) {
                return None;
            }
        }
        let values = found.iter().map(|value| String::from_utf8_lossy(value).into_owned());
        Some(self.labels.iter().cloned().zip(values).collect())
    }
}

/// The parts of a component; names of labels are added to `labels`.
fn component(text: &str, labels: &mut Vec<String>) -> Result<Vec<Part>, String> {
    if text.is_empty() {
        return Err("it has an empty component: two slashes, or one at an end".into());
    }
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (part, tail) = match rest.find(['{', '}', '*']) {
            Some(0) if rest.starts_with('*') => (Part::Any(Takes::Anything, None), &rest[1..]),
            Some(0) if rest.starts_with('{') => {
                let end = rest.find('}').ok_or_else(|| format!("the {{ of {text} is not closed"))?;
                (placeholder(&rest[1..end], labels)?, &rest[end + 1..])
            }
            Some(0) => return Err(format!("the }} of {text} was not opened")),
            at => {
                let (literal, tail) = rest.split_at(at.unwrap_or(rest.len()));
                (Part::Text(literal.to_owned()), tail)
            }
        };
        if let (Part::Any(Takes::Anything, _), Some(Part::Any(Takes::Anything, _))) = (&part, parts.last()) {
            return Err(format!("in {text} nothing tells where one placeholder ends and the next begins"));
        }
        parts.push(part);
        rest = tail;
    }
    Ok(parts)
}

/// What stands between braces.
fn placeholder(inside: &str, labels: &mut Vec<String>) -> Result<Part, String> {
    let (name, takes) = if let Some((name, texts)) = inside.split_once('=') {
        let texts: Vec<String> = texts.split('|').map(str::to_owned).collect();
        if texts.iter().any(String::is_empty) {
            return Err(format!("{{{inside}}} has an empty text to choose from"));
        }
        (name, Takes::One(texts))
    } else if let Some((name, class)) = inside.split_once(':') {
        if class != "digits" {
            return Err(format!("{{{inside}}}: there is {{name:digits}}, and no other class"));
        }
        (name, Takes::Digits)
    } else {
        (inside, Takes::Anything)
    };
    if name.is_empty() {
        return Ok(Part::Any(takes, None));
    }
    let fit = name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_');
    if !fit || name.starts_with(|c: char| c.is_ascii_digit()) || name.starts_with("__") || name.len() > 32 {
        return Err(format!("{{{inside}}}: a label is called by small letters, digits and _, up to 32 of them"));
    }
    if TAKEN.contains(&name) {
        return Err(format!("{{{inside}}}: the series have a label {name} already"));
    }
    if labels.iter().any(|other| other == name) {
        return Err(format!("the label {name} is there twice"));
    }
    labels.push(name.to_owned());
    Ok(Part::Any(takes, Some(labels.len() - 1)))
}

/// Whether these parts take all of `name`. From the end, so that no name takes longer than its length times the parts:
/// files are called by anybody.
fn takes<'a>(parts: &[Part], name: &'a [u8], found: &mut [&'a [u8]]) -> bool {
    // By place in the name: whether the parts from `i` on take the rest.
    let mut fits = vec![vec![false; name.len() + 1]; parts.len() + 1];
    fits[parts.len()][name.len()] = true;
    for (i, part) in parts.iter().enumerate().rev() {
        for at in (0..=name.len()).rev() {
            fits[i][at] = match part {
                Part::Any(Takes::Anything, _) => at < name.len() && (fits[i + 1][at + 1] || fits[i][at + 1]),
                _ => part.lengths(&name[at..]).any(|len| fits[i + 1][at + len]),
            };
        }
    }
    if !fits[0][0] {
        return false;
    }
    let mut at = 0;
    for (i, part) in parts.iter().enumerate() {
        let Some(len) = part.lengths(&name[at..]).find(|len| fits[i + 1][at + len]) else { return false };
        if let Part::Any(_, Some(label)) = part {
            found[*label] = &name[at..at + len];
        }
        at += len;
    }
    true
}

impl Part {
    /// How many bytes it can take where `rest` begins, in the order of preference.
    fn lengths<'a>(&'a self, rest: &'a [u8]) -> Box<dyn Iterator<Item = usize> + 'a> {
        let begins = |text: &str| rest.starts_with(text.as_bytes());
        match self {
            Self::Text(text) => Box::new(begins(text).then_some(text.len()).into_iter()),
            Self::Any(Takes::Anything, _) => Box::new(1..=rest.len()),
            Self::Any(Takes::Digits, _) => Box::new(1..=rest.iter().take_while(|c| c.is_ascii_digit()).count()),
            Self::Any(Takes::One(texts), _) => Box::new(texts.iter().filter(move |t| begins(t)).map(String::len)),
        }
    }
}

/// The databases whose files are known, and the patterns of each, which say as much as an operator asks for and no
/// more: what has no bound, such as one table of thousands, is no label.
const PRESETS: [(&str, &[&str]); 9] = [
    // Layouts as the projects' documentation and a look into their folders have them, in 2026.
    (
        "banyandb",
        &[
            "{catalog=measure|stream|trace}/data/{group}/seg-{segment}/shard-{}/{}/{kind}.bin",
            "{catalog=measure|stream|trace}/data/{group}/seg-{segment}/shard-{}/{kind=sidx|idx}/{}",
            "{catalog=measure|stream|trace}/data/{group}/seg-{segment}/{kind=sidx|idx}/{}",
            "{catalog=measure|stream|trace}/data/{group}/seg-{segment}/shard-{}/{}/{kind=metadata}.json",
            "{catalog=property|schema-property}/data/{group}/shard-{}/{}",
        ],
    ),
    (
        "postgresql",
        &[
            "{kind=base}/{database:digits}/{:digits}*",
            "{kind=base}/{database:digits}/{:digits}",
            "{kind=base}/{database:digits}/{=PG_VERSION|pg_filenode.map|pg_internal.init}",
            "{kind=pg_wal|pg_xact|pg_multixact|pg_subtrans|pg_commit_ts}/{}",
            "{kind=pg_multixact}/{=members|offsets}/{}",
            "{kind=pg_tblspc}/{:digits}/PG_{}/{database:digits}/{}",
        ],
    ),
    (
        "elasticsearch",
        &[
            "indices/{index}/{:digits}/{kind=translog}/{}",
            "indices/{index}/{:digits}/index/{}.{kind}",
            "indices/{index}/{:digits}/index/{kind=segments}_{}",
        ],
    ),
    ("kafka", &["{topic}-{:digits}/{:digits}.{kind=log|index|timeindex|txnindex|snapshot}"]),
    (
        "victoriametrics",
        &[
            "data/{part=small|big}/{partition}/{}/{kind}.bin",
            "data/{part=indexdb}/{partition}/{}/{kind}.bin",
            "{part=indexdb}/{}/{}/{kind}.bin",
        ],
    ),
    (
        "prometheus",
        &["{}/{kind=chunks}/{:digits}", "{kind=chunks_head|wal|wbl}/{:digits}", "{=data}/{}/{kind=index|tombstones}"],
    ),
    (
        "clickhouse",
        &[
            "store/{}/{}/{}/{}.{kind=bin|cbin|mrk|mrk2|mrk3|cmrk2|cmrk3|idx|cidx}",
            "data/{database}/{table}/{}/{}.{kind=bin|cbin|mrk|mrk2|mrk3|cmrk2|cmrk3|idx|cidx}",
        ],
    ),
    ("etcd", &["member/{kind=snap}/db", "member/{kind=wal}/{}.wal"]),
    ("rocksdb", &["{db}/{:digits}.{kind=sst|ldb|blob|log}", "{db}/{kind=MANIFEST}-{:digits}"]),
];

/// Patterns in the order in which they are tried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Groups {
    patterns: Vec<Pattern>,
}

/// The group that a file belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Group {
    /// Whose pattern it was; empty: the configuration's.
    pub preset: &'static str,
    /// In the order of the pattern.
    pub labels: Vec<(String, String)>,
}

impl Groups {
    /// The names of the presets.
    fn presets() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|(name, _)| *name)
    }

    /// Patterns of a configuration, then those of the preset of this name, of every one for `auto`, or none for `none`.
    /// An error: which pattern is wrong and why, or that there is no such preset.
    pub fn new(patterns: &[String], preset: &str) -> Result<Self, String> {
        let mut all = Vec::new();
        for text in patterns {
            all.push(Pattern::parse(text).map_err(|why| format!("pattern {text:?}: {why}"))?);
        }
        if !matches!(preset, "auto" | "none") && !Self::presets().any(|name| name == preset) {
            let names: Vec<_> = Self::presets().collect();
            return Err(format!("there is no preset {preset:?}, but auto, none, {}", names.join(", ")));
        }
        for (name, texts) in PRESETS.iter().filter(|(name, _)| preset == "auto" || preset == *name) {
            for text in *texts {
                all.push(Pattern { preset: name, ..Pattern::parse(text)? });
            }
        }
        Ok(Self { patterns: all })
    }

    /// The group of the file whose path has these components, the last one first; as many as are known.
    pub fn of(&self, path: &[&[u8]]) -> Option<Group> {
        self.patterns.iter().find_map(|p| Some(Group { preset: p.preset, labels: p.labels_of(path)? }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(groups: &Groups, path: &str) -> Option<String> {
        let components: Vec<&[u8]> = path.split('/').filter(|c| !c.is_empty()).rev().map(str::as_bytes).collect();
        let group = groups.of(&components[..components.len().min(MAX_COMPONENTS)])?;
        let labels: Vec<_> = group.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        Some(format!("{}:{}", group.preset, labels.join(",")))
    }

    #[track_caller]
    fn one(pattern: &str, path: &str) -> Option<String> {
        group(&Groups::new(&[pattern.to_owned()], "none").unwrap(), path)
    }

    #[test]
    fn a_pattern_takes_the_end_of_a_path() {
        assert_eq!(one("{a}/x-{b}.bin", "/srv/db/x-1.bin").unwrap(), ":a=db,b=1");
        assert_eq!(one("x-{b}.bin", "x-1.bin").unwrap(), ":b=1");
        assert_eq!(one("{a}/x-{b}.bin", "x-1.bin"), None, "too short");
        assert_eq!(one("x-{b}.bin", "/x-.bin"), None, "at least a byte");
        assert_eq!(one("x-*.bin", "/x-1.bin.tmp"), None);
        assert_eq!(one("*", "/x").unwrap(), ":");
        // What comes first is shortest.
        assert_eq!(one("{a}-{b}", "/x-y-z").unwrap(), ":a=x,b=y-z");
        assert_eq!(one("{a}-{b:digits}", "/x-1-22").unwrap(), ":a=x-1,b=22");
        assert_eq!(one("{a}-{:digits}", "/x-1-y"), None);
        assert_eq!(one("{k=aa|a}{n:digits}", "/a1").unwrap(), ":k=a,n=1");
        assert_eq!(one("{k=a|ab}.{=bin|idx}", "/ab.idx").unwrap(), ":k=ab");
        assert_eq!(one("{k=a|ab}", "/abc"), None);
    }

    #[test]
    fn names_of_any_bytes() {
        let groups = Groups::new(&["{a}/{b}.bin".into()], "none").unwrap();
        let found = groups.of(&[b"\xff\n.bin", "é\"\\".as_bytes()]).unwrap();
        assert_eq!(found.labels, [("a".into(), "é\"\\".into()), ("b".into(), "\u{fffd}\n".into())]);
        assert_eq!(groups.of(&[]), None);
        assert_eq!(groups.of(&[b"", b""]), None);
        // Not as many ways are tried as there are.
        let long = [b'a'; 255];
        assert_eq!(Groups::new(&[format!("{}b", "*a".repeat(40))], "none").unwrap().of(&[&long]), None);
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (pattern, words) in [
            ("", "empty component"),
            ("a//b", "empty component"),
            ("a/", "empty component"),
            ("/a", "cannot begin with /"),
            ("{a", "not closed"),
            ("a}", "not opened"),
            ("{a}{b}", "where one placeholder ends"),
            ("**", "where one placeholder ends"),
            ("{A}", "small letters"),
            ("{1a}", "small letters"),
            ("{__a}", "small letters"),
            ("{cause}", "already"),
            ("{a}/{a}", "twice"),
            ("{a:hex}", "no other class"),
            ("{a=}", "empty text"),
            ("1/2/3/4/5/6/7/8/9", "9 components"),
        ] {
            let why = Groups::new(&[pattern.to_owned()], "none").unwrap_err();
            assert!(why.contains(words) && why.contains(&format!("{pattern:?}")), "{pattern}: {why}");
        }
        let why = Groups::new(&[], "mysql").unwrap_err();
        assert!(why.contains("mysql") && why.contains("auto, none, banyandb"), "{why}");
    }

    #[test]
    fn the_first_pattern_decides() {
        let groups = Groups::new(&["{kind}.bin".into(), "{other}/{name}".into()], "banyandb").unwrap();
        assert_eq!(group(&groups, "/measure/data/g/seg-1/shard-0/1/primary.bin").unwrap(), ":kind=primary");
        assert_eq!(group(&groups, "/a/b").unwrap(), ":other=a,name=b");
    }

    #[test]
    fn files_of_databases_have_their_groups() {
        let auto = Groups::new(&[], "auto").unwrap();
        for (path, want) in [
            (
                "/tmp/measure/data/sw_metric/seg-20261127/shard-0/0000000000000001/primary.bin",
                "banyandb:catalog=measure,group=sw_metric,segment=20261127,kind=primary",
            ),
            (
                "/tmp/stream/data/sw_records/seg-2026112700/sidx/00000000000a.seg",
                "banyandb:catalog=stream,group=sw_records,segment=2026112700,kind=sidx",
            ),
            (
                "/tmp/schema-property/data/_schema/shard-0/000000000001.seg",
                "banyandb:catalog=schema-property,group=_schema",
            ),
            ("/var/lib/postgresql/15/main/base/16384/2619", "postgresql:kind=base,database=16384"),
            ("/var/lib/postgresql/15/main/base/16384/2619_fsm", "postgresql:kind=base,database=16384"),
            ("/var/lib/postgresql/15/main/base/16384/16390.1", "postgresql:kind=base,database=16384"),
            ("/var/lib/postgresql/15/main/pg_wal/000000010000000000000001", "postgresql:kind=pg_wal"),
            ("/var/lib/postgresql/15/main/pg_multixact/members/0000", "postgresql:kind=pg_multixact"),
            ("/usr/share/es/data/indices/aBc/0/index/_0.cfs", "elasticsearch:index=aBc,kind=cfs"),
            ("/usr/share/es/data/indices/aBc/0/index/segments_3", "elasticsearch:index=aBc,kind=segments"),
            ("/usr/share/es/data/indices/aBc/0/translog/translog-2.tlog", "elasticsearch:index=aBc,kind=translog"),
            ("/kafka/orders-eu-12/00000000000000000000.log", "kafka:topic=orders-eu,kind=log"),
            ("/vm/data/big/2026_11/1761234_56/values.bin", "victoriametrics:part=big,partition=2026_11,kind=values"),
            ("/vm/indexdb/17AB/12_34/items.bin", "victoriametrics:part=indexdb,kind=items"),
            ("/prometheus/01HABCDEFGHJKMNPQRSTVWXYZ0/chunks/000001", "prometheus:kind=chunks"),
            ("/prometheus/wal/00000012", "prometheus:kind=wal"),
            ("/prometheus/chunks_head/000003", "prometheus:kind=chunks_head"),
            ("/ch/store/abc/abcdef/202611_1_1_0/data.bin", "clickhouse:kind=bin"),
            ("/ch/store/abc/abcdef/202611_1_1_0/ts.cmrk2", "clickhouse:kind=cmrk2"),
            ("/var/lib/etcd/default/member/snap/db", "etcd:kind=snap"),
            ("/var/lib/etcd/member/wal/0-0.wal", "etcd:kind=wal"),
            ("/data/rocks/000123.sst", "rocksdb:db=rocks,kind=sst"),
            ("/data/rocks/MANIFEST-000004", "rocksdb:db=rocks,kind=MANIFEST"),
        ] {
            assert_eq!(group(&auto, path).as_deref(), Some(want), "{path}");
        }
        for path in ["/etc/passwd", "/usr/lib/libc.so.6", "/var/log/syslog", "/base/x/1", "/home/me/a.bin"] {
            assert_eq!(group(&auto, path), None, "{path}");
        }
    }
}
