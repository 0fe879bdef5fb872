//! Tells systemd how the agent does, by sd_notify(3)'s protocol: a datagram to the socket that the environment names.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::ebpf::os;

/// The service manager that started the agent, if one wants to know.
#[derive(Debug)]
pub struct Systemd {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Systemd {
    /// The one that the environment names (`NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`).
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var_os(name), std::process::id())
    }

    fn from_vars(var: impl Fn(&str) -> Option<OsString>, pid: u32) -> Self {
        let number = |name| var(name).and_then(|v| v.to_str()?.parse::<u64>().ok());
        let socket = var("NOTIFY_SOCKET").filter(|name| !name.is_empty()).and_then(|name| {
            let address = match name.as_bytes() {
                // @ stands for the NUL that names in the abstract namespace begin with.
                [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
                path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path)),
            };
            let socket = address.and_then(|a| Ok((unbound()?, a)));
            socket.inspect_err(|e| log::warn!("NOTIFY_SOCKET {name:?} cannot be used: {e}")).ok()
        });
        // A watchdog of somebody else, whose environment was inherited, is not ours to feed.
        let ours = number("WATCHDOG_PID").is_none_or(|p| p == u64::from(pid));
        let watchdog = number("WATCHDOG_USEC").filter(|us| *us > 0 && ours).map(Duration::from_micros);
        Self { watchdog: watchdog.filter(|_| socket.is_some()), socket }
    }

    /// How often [`Systemd::alive`] is to be called: twice as often as the watchdog looks. `None`: never.
    pub fn period(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// The agent serves; `status` is for `systemctl status`, one line.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", status.replace(char::is_control, " ")));
    }

    /// The agent reads its configuration again; it is ready afterwards.
    pub fn reloading(&self) {
        // systemd wants to know which reload an answer is of.
        let now = os::monotonic_micros();
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
    }

    /// The watchdog need not bite yet.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// The agent ends because it was asked to.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, message: &str) {
        let Some((socket, address)) = &self.socket else { return };
        if let Err(e) = socket.send_to_addr(message.as_bytes(), address) {
            log::warn!("systemd was not told {message:?}: {e}");
        }
    }
}

/// A full queue must not make the agent wait.
fn unbound() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn systemd(vars: &[(&str, &str)]) -> Systemd {
        let var = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
        Systemd::from_vars(var, 42)
    }

    fn receive(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let n = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    }

    #[test]
    fn messages_reach_a_socket_in_the_abstract_namespace() {
        let name = format!("ebpf-sidecar-test-{}", std::process::id());
        let server = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let systemd = systemd(&[("NOTIFY_SOCKET", &format!("@{name}"))]);
        systemd.ready("a\nREADY=0");
        systemd.alive();
        systemd.stopping();
        assert_eq!(receive(&server), "READY=1\nSTATUS=a READY=0");
        assert_eq!(receive(&server), "WATCHDOG=1");
        assert_eq!(receive(&server), "STOPPING=1");
    }

    #[test]
    fn the_watchdog_is_fed_if_it_is_ours() {
        let period = |vars: &[(&str, &str)]| systemd(&[&[("NOTIFY_SOCKET", "@x")], vars].concat()).period();
        let fed = Some(Duration::from_secs(15));
        assert_eq!(period(&[("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", "42")]), fed);
        assert_eq!(period(&[("WATCHDOG_USEC", "30000000")]), fed);
        assert_eq!(period(&[("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", "41")]), None);
        assert_eq!(period(&[("WATCHDOG_USEC", "0")]), None);
        assert_eq!(period(&[("WATCHDOG_USEC", "often")]), None);
        assert_eq!(period(&[]), None);
        assert_eq!(systemd(&[("WATCHDOG_USEC", "30000000")]).period(), None);
    }

    #[test]
    fn without_a_manager_or_with_one_that_has_gone_nothing_happens() {
        let long = "x".repeat(200);
        for socket in ["", "relative-and-absent", "/nowhere/at/all", "@nobody-listens-here", &long] {
            systemd(&[("NOTIFY_SOCKET", socket)]).ready("");
        }
        systemd(&[]).ready("");
    }
}
