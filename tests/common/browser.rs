//! A real Chromium without a window, driven through chromedriver: WebDriver is HTTP and JSON.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use openssl::base64::decode_block;
use serde_json::{Value, json};

use super::Killed;

/// Keys as WebDriver names them.
pub const TAB: &str = "\u{e004}";
pub const ENTER: &str = "\u{e007}";
pub const SPACE: &str = " ";
pub const LEFT: &str = "\u{e012}";
pub const END: &str = "\u{e010}";

/// The browser, with one tab; ended when dropped.
pub struct Browser {
    _driver: Killed,
    /// Open for what the driver may say yet.
    _said: BufReader<ChildStdout>,
    port: u16,
    session: String,
}

impl Browser {
    /// Starts it; an error says that it is not installed.
    pub fn start() -> Result<Self, String> {
        // It wants the same port of IPv4 and of IPv6, and ends if somebody has the second.
        let mut words = String::new();
        let started = (0..10).find_map(|_| start_driver(&mut words).transpose());
        let (driver, said, port) = started.unwrap_or_else(|| panic!("chromedriver ends by itself: {words}"))?;
        let mut browser = Self { _driver: driver, _said: said, port, session: String::new() };
        // Root cannot have the sandbox, and what is looked at is our own.
        let arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": arguments}, "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let session = browser.call("POST", "/session", &wanted).unwrap();
        browser.session = format!("/session/{}", session["sessionId"].as_str().unwrap());
        Ok(browser)
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let (status, value) = self.exchange(method, path, body).map_err(|e| format!("chromedriver: {e}"))?;
        if status == "200" { Ok(value) } else { Err(format!("{method} {path}: {}", value["message"])) }
    }

    fn exchange(&self, method: &str, path: &str, body: &Value) -> std::io::Result<(String, Value)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(180)))?;
        let body = body.to_string();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close", self.port);
        write!(stream, "{head}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
        let mut answer = BufReader::new(stream);
        let (mut status, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if answer.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            match line.trim_end().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("Content-Length") => {
                    length = value.trim().parse().unwrap();
                }
                None if line.trim().is_empty() => break,
                None => status = line.split(' ').nth(1).unwrap_or_default().to_owned(),
                Some(_) => {}
            }
        }
        let mut body = vec![0; length];
        answer.read_exact(&mut body)?;
        let json: Value = serde_json::from_slice(&body)?;
        Ok((status, json["value"].clone()))
    }

    fn of_session(&self, path: &str, body: &Value) -> Value {
        self.call("POST", &format!("{}{path}", self.session), body).unwrap()
    }

    pub fn open(&self, url: &str) {
        self.of_session("/url", &json!({ "url": url }));
    }

    /// What a function with this body returns in the page.
    pub fn eval(&self, script: &str) -> Value {
        self.of_session("/execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until such a function returns something true, and returns that.
    #[track_caller]
    pub fn wait(&self, script: &str) -> Value {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let value = self.eval(script);
            if !matches!(value, Value::Null | Value::Bool(false)) {
                return value;
            }
            let shown = || self.eval("return document.body.innerText");
            assert!(Instant::now() < deadline, "waited in vain for {script}; the page: {}", shown());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Presses and releases a key.
    pub fn press(&self, key: &str) {
        let actions = json!([{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]);
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": actions});
        self.of_session("/actions", &json!({"actions": [keyboard]}));
    }

    /// A command of the DevTools.
    pub fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.of_session("/goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }

    /// A window of this size.
    pub fn resize(&self, width: u32, height: u32, mobile: bool) {
        let screen = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile});
        self.devtools("Emulation.setDeviceMetricsOverride", screen);
        self.devtools("Emulation.setScrollbarsHidden", json!({"hidden": true}));
    }

    /// What the user prefers, such as `prefers-color-scheme` dark.
    pub fn prefer(&self, feature: &str, value: &str) {
        let features = json!({"features": [{"name": feature, "value": value}]});
        self.devtools("Emulation.setEmulatedMedia", features);
    }

    /// What the console has got since the last call.
    pub fn console(&self) -> Vec<String> {
        let entries = self.of_session("/se/log", &json!({"type": "browser"}));
        entries.as_array().unwrap().iter().map(|e| format!("{} {}", e["level"], e["message"])).collect()
    }

    /// Keeps a picture of the whole page.
    pub fn picture(&self, file: &Path) {
        let how = json!({"format": "png", "captureBeyondViewport": true});
        let answer = self.devtools("Page.captureScreenshot", how);
        std::fs::write(file, decode_block(answer["data"].as_str().unwrap()).unwrap()).unwrap();
    }
}

/// The driver, what it says, and its port; `None` if it ends at once, after `words`.
fn start_driver(words: &mut String) -> Result<Option<(Killed, BufReader<ChildStdout>, u16)>, String> {
    let mut driver = Command::new("chromedriver")
        .arg("--port=0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("chromedriver: {e} (sh .ci/deps.sh browser)"))?;
    let mut said = BufReader::new(driver.stdout.take().unwrap());
    let driver = Killed(driver);
    loop {
        let begin = words.len();
        if said.read_line(words).unwrap() == 0 {
            return Ok(None);
        }
        let port = words[begin..].split_once("started successfully on port ");
        if let Some(port) = port.and_then(|(_, port)| port.trim_end().trim_end_matches('.').parse().ok()) {
            return Ok(Some((driver, said, port)));
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends the browser; killing the driver would not.
        if let Err(e) = self.call("DELETE", &self.session, &json!({})) {
            eprintln!("the browser stays: {e}");
        }
    }
}
