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
    use serde_json::Value;

    use super::*;
    use crate::config::PROBES;
    use crate::export::json;
    use crate::monitor::example;

    #[test]
    fn the_page_shows_every_metric_of_the_kernel() {
        // Sums and rates of others that it shows.
        const LEFT_OUT: [&str; 9] = [
            "fadvise.total_calls",
            "fadvise.success_calls",
            "fadvise.process_stats", // has a table of its own
            "cache.hits",
            "cache.miss_rate_percent",
            "cache.pages_added",
            "cache.pages_evicted",
            "memory.lru_pages_scanned",
            "memory.pages_reclaimed",
        ];
        let stats: Value = serde_json::from_str(&json::stats(&example::snapshot())).unwrap();
        for section in ["fadvise", "cache", "memory"] {
            for field in stats[section].as_object().unwrap().keys() {
                let path = format!("{section}.{field}");
                let shown = HTML.contains(&format!("\"{path}\""));
                assert!(shown != LEFT_OUT.contains(&path.as_str()), "{path}");
            }
        }
        for probe in PROBES {
            assert!(HTML.contains(&format!("\"{probe}\"")), "{probe}");
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
