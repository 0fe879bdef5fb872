//! What goes with every call: its time limit, and user and password where the server asks for them.

use std::time::Duration;

use grpcio::{CallOption, MetadataBuilder};

use crate::config::{BanyanDb, credential};
use crate::host::secret;

/// Time limit and credentials of a call. An error tells what is wrong with the password's file.
pub fn option(config: &BanyanDb, limit: Duration) -> Result<CallOption, String> {
    let option = CallOption::default().timeout(limit).wait_for_ready(false);
    let Some(username) = &config.username else { return Ok(option) };
    let password = match (&config.password, &config.password_file) {
        (Some(password), _) => password.0.clone(),
        (None, Some(path)) => {
            const KEY: &str = "export.banyandb.password_file";
            let text = secret::read(KEY, path)?;
            credential(&text).map_err(|_| secret::wrong(KEY, path, &"not 1 to 255 printable ASCII characters"))?
        }
        (None, None) => return Ok(option),
    };
    let mut metadata = MetadataBuilder::new();
    // Both are printable, which is all that is asked of them.
    for (key, value) in [("username", username), ("password", &password)] {
        metadata.add_str(key, value).map_err(|_| format!("the {key} cannot be sent"))?;
    }
    Ok(option.headers(metadata.build()))
}
