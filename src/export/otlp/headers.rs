//! What goes with every request: the headers of the configuration.

use crate::config::{self, Otlp};
use crate::host::secret;

/// The headers. An error tells what is wrong with their file.
pub fn read(config: &Otlp) -> Result<Vec<(String, String)>, String> {
    const KEY: &str = "export.otlp.headers_file";
    match (&config.headers, &config.headers_file) {
        // It was looked at when the configuration was read.
        (Some(headers), _) => Ok(config::headers(&headers.0).unwrap_or_default()),
        (None, Some(path)) => config::headers(&secret::read(KEY, path)?).map_err(|why| {
            secret::wrong(KEY, path, &why.unwrap_or("not headers, name=value with commas between several"))
        }),
        (None, None) => Ok(Vec::new()),
    }
}
