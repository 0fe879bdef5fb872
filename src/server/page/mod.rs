//! The page at `/`: one HTML file, compiled in, that draws what `/health` and `/api/v1/stats` tell. Its policy forbids
//! browsers everything but the style and the script in this very file, and requests to the agent itself.

use openssl::base64::encode_block;
use openssl::sha::sha256;

/// The page.
pub const HTML: &str = include_str!("index.html");

/// The value of `Content-Security-Policy` for it. Images are there for its icon alone, which is in the file too.
pub fn policy() -> String {
    format!(
        "default-src 'none'; script-src{}; style-src{}; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        hashes("script"),
        hashes("style")
    )
}

/// The hash of what stands in each of the page's elements of this name, as a policy has it.
fn hashes(element: &str) -> String {
    let (begin, end) = (format!("<{element}>"), format!("</{element}>"));
    let contents = HTML.split(&begin).skip(1).map(|rest| rest.split(&end).next().unwrap_or_default());
    contents.map(|text| format!(" 'sha256-{}'", encode_block(&sha256(text.as_bytes())))).collect()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::{env, fs, ptr};

    use super::*;
    use crate::config::PROBES;
    use crate::metrics::metric::Kind;
    use crate::monitor::catalogue::SUBJECTS;
    use crate::monitor::stat::{Row, Stat, Subject};
    use crate::monitor::{evictions, fadvise, fills, reads, reclaim, sleeps, waits};

    /// The panels, what is asked for most first.
    static PANELS: [&Subject; 7] = [
        &reads::SUBJECT,
        &waits::SUBJECT,
        &sleeps::SUBJECT,
        &fills::SUBJECT,
        &evictions::SUBJECT,
        &fadvise::SUBJECT,
        &reclaim::SUBJECT,
    ];

    /// What the script says of the panels: the titles and rows that the subjects declare.
    fn panels() -> String {
        let mut out = "const PANELS = [\n".to_string();
        for subject in PANELS {
            let shown = subject.stats.iter().filter_map(|stat| Some((*stat, stat.how.row?.ok()?)));
            let (mut placed, mut rows): (Vec<_>, Vec<_>) = shown.partition(|(_, row)| row.place.is_some());
            placed.sort_by_key(|(_, row)| row.place);
            for (stat, row) in placed {
                rows.insert(row.place.unwrap_or_default().min(rows.len()), (stat, row));
            }
            let (title, help) = subject.panel;
            writeln!(out, "  [{title:?}, {help:?}, [").unwrap();
            for (stat, row) in rows {
                writeln!(out, "    {},", call(stat, row)).unwrap();
            }
            out += "  ]],\n";
        }
        out + "];\n"
    }

    fn call(stat: &Stat, row: Row) -> String {
        let (metric, json) = (&stat.metric, stat.metric.json.unwrap());
        let (kind, unit) = match (metric.kind, metric.unit) {
            (Kind::Gauge, "percent") => ("gauge", "%".to_string()),
            (Kind::Gauge, _) => ("gauge", String::new()), // of what, the label tells
            (Kind::Histogram, _) if json.by.is_some() => ("seconds", "s/s".to_string()),
            (Kind::Histogram, _) => ("waits", format!("{}/s", row.label)),
            (Kind::Counter, "bytes") => ("counter", "B/s".to_string()),
            (Kind::Counter, unit) if metric.labels.is_empty() => ("counter", format!("{unit}/s")),
            (Kind::Counter, unit) => ("by", format!("{unit}/s")),
        };
        let path = format!("{}.{}", json.section, json.by.or(json.key).unwrap());
        let mut arguments = vec![kind, &unit, row.label, &path];
        arguments.extend(stat.how.needs.names());
        let arguments: Vec<String> = arguments.iter().map(|a| format!("{a:?}")).collect();
        let call = format!("row({})", arguments.join(", "));
        match (row.tall, row.named) {
            (true, _) => format!("{{ ...{call}, tall: true }}"),
            (_, true) => format!("{{ ...{call}, named: true }}"),
            _ => call,
        }
    }

    #[test]
    fn the_panels_are_those_of_the_subjects() {
        assert!(SUBJECTS.iter().all(|s| PANELS.iter().any(|p| ptr::eq(*s, *p))), "a subject has no panel");
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/server/page/index.html");
        let page = fs::read_to_string(path).unwrap();
        let begin = page.find("const PANELS = [\n").unwrap();
        let end = begin + page[begin..].find("\n];\n").unwrap() + "\n];\n".len();
        if env::var_os("UPDATE_DOCS").is_some() {
            fs::write(path, [&page[..begin], &panels(), &page[end..]].concat()).unwrap();
        } else {
            assert!(page[begin..end] == panels(), "src/server/page/index.html: UPDATE_DOCS=1 cargo test --lib page");
        }
        for probe in PROBES {
            assert!(panels().contains(&format!("\"{probe}\"")), "{probe}");
        }
    }

    #[test]
    fn the_page_is_one_file_with_one_script_and_one_style() {
        assert!(HTML.len() <= 40 << 10, "{} bytes", HTML.len());
        for element in ["script", "style"] {
            // With attributes it would not be hashed.
            assert_eq!(HTML.matches(&format!("<{element}")).count(), 1, "{element}");
            assert_eq!(hashes(element).matches("'sha256-").count(), 1, "{element}");
        }
        let outside = ["http:", "https:", "//cdn", "src=", "@import", "url("];
        let found = HTML.replace("http://www.w3.org/2000/svg", "");
        assert!(outside.iter().all(|o| !found.contains(o)), "it refers to something outside");
        // Text of the agent must never be taken for HTML, nor for script.
        for sink in ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "new Function", "style="] {
            assert!(!HTML.contains(sink), "{sink}");
        }
    }
}
