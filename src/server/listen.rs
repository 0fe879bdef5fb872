//! Where a server listens, and why it could not start, in words that help.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use crate::ebpf::poll;

/// Connections that may wait where nothing else is said.
const BACKLOG: i32 = 128;

/// A listener at `address`. Every interface, in either way of writing it, is that of both families, and of IPv4 alone where
/// there is no IPv6.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().to_canonical().is_unspecified() {
        return TcpListener::bind(address);
    }
    match poll::both_families(address.port()) {
        Ok(socket) => {
            let listener = TcpListener::from(socket);
            poll::set_backlog(&listener, BACKLOG)?;
            Ok(listener)
        }
        // No such family, or no address of it: another's port is none of these.
        Err(e) if matches!(e.kind(), ErrorKind::Unsupported | ErrorKind::AddrNotAvailable) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port()))
        }
        Err(e) => Err(e),
    }
}

/// The address of a client as it has it: through a listener of both families, IPv4's come in the dress of IPv6.
pub fn plain(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

/// Who has all addresses beside this one: of IPv6, 64 bits' worth of them are one subscriber's.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() >> 64 << 64).into()),
        v4 => v4,
    }
}

/// Why a server could not start.
#[derive(Debug)]
pub enum StartError {
    /// The address could not be listened on.
    Listen {
        /// What the server speaks.
        server: &'static str,
        /// Where its keys are in the configuration.
        keys: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the kernel says.
        error: io::Error,
    },
    /// Sockets or threads of its own could not be had.
    Setup(&'static str, io::Error),
    /// Certificates cannot be used.
    Tls(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (server, keys, address, error) = match self {
            StartError::Listen { server, keys, address, error } => (server, keys, address, error),
            StartError::Setup(server, error) => return write!(f, "cannot start the {server} server: {error}"),
            StartError::Tls(why) => return f.write_str(why),
        };
        write!(f, "cannot listen for {server} on {} port {}: ", address.ip(), address.port())?;
        match error.kind() {
            ErrorKind::AddrInUse => write!(
                f,
                "the port is in use; stop what uses it (ss -ltnp 'sport = :{}' names it) or set another {keys}.port",
                address.port()
            ),
            ErrorKind::PermissionDenied => {
                write!(f, "not permitted; set {keys}.port to 1024 or above, or grant CAP_NET_BIND_SERVICE")
            }
            ErrorKind::AddrNotAvailable => {
                write!(f, "this machine has no such address; set {keys}.address to one that `ip address` shows")
            }
            _ => write!(f, "{error}; set another {keys}.address or {keys}.port"),
        }
    }
}

impl std::error::Error for StartError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_error_says_where_and_what_to_do() {
        let address = "127.0.0.1:80".parse().unwrap();
        for (kind, words) in [
            (ErrorKind::AddrInUse, "ss -ltnp"),
            (ErrorKind::PermissionDenied, "CAP_NET_BIND_SERVICE"),
            (ErrorKind::AddrNotAvailable, "server.http.address"),
        ] {
            let error = StartError::Listen { server: "HTTP", keys: "server.http", address, error: kind.into() };
            let text = error.to_string();
            assert!(text.contains("HTTP on 127.0.0.1 port 80") && text.contains(words), "{text}");
        }
    }
}
