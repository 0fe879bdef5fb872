//! What std does not offer and the servers need, as safe functions: poll(2), a listener for both families, settings of a
//! listener, and a socket for gRPC.
#![allow(unsafe_code)]

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

pub use libc::{POLLIN, POLLOUT, POLLRDHUP, pollfd as PollFd};

/// An entry of a poll set. A descriptor that is closed by the time of the call is reported as `POLLNVAL`.
pub fn entry(socket: &impl AsRawFd, events: i16) -> PollFd {
    PollFd { fd: socket.as_raw_fd(), events, revents: 0 }
}

/// Waits until an entry has something to report or `timeout` is over, and leaves the reports in `revents`.
/// A signal ends the wait early, with nothing reported.
pub fn poll(entries: &mut [PollFd], timeout: Option<Duration>) -> io::Result<()> {
    // Rounded up: a wait that ends just before the deadline it is for would be repeated at once.
    let millis = timeout.map_or(-1, |t| i32::try_from(t.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
    // SAFETY: the pointer and the length describe one exclusively borrowed slice of pollfd, which the kernel
    // reads and whose `revents` it writes, during the call only.
    let result = unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, millis) };
    if result >= 0 {
        return Ok(());
    }
    entries.iter_mut().for_each(|e| e.revents = 0);
    match io::Error::last_os_error() {
        e if e.kind() == io::ErrorKind::Interrupted => Ok(()),
        e => Err(e),
    }
}

/// A socket of IPv6 that takes IPv4 as well, at every interface, whatever net.ipv6.bindv6only says; an error of kind
/// `Unsupported` where there is no IPv6. It does not listen yet.
pub fn both_families(port: u16) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET6, kind, 0) };
    if fd < 0 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, io::Error::last_os_error()));
    }
    // SAFETY: a fresh descriptor, ours alone.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let set = |level, option, value: i32| {
        let size = size_of::<i32>() as libc::socklen_t;
        // SAFETY: the pointer and the size describe one i32 that lives through the call, which only reads it.
        check(unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), size) })
    };
    set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0)?;
    set(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?; // as std does
    // SAFETY: all-zero is a valid address, that of every interface.
    let mut address: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    address.sin6_family = libc::AF_INET6 as libc::sa_family_t;
    address.sin6_port = port.to_be();
    let size = size_of_val(&address) as libc::socklen_t;
    // SAFETY: a live address of that size.
    check(unsafe { libc::bind(fd, (&raw const address).cast(), size) })?;
    Ok(socket)
}

/// Sets how many connections may wait to be accepted. std's 128 overflow in a burst, and a client whose SYN was
/// dropped tries again only after a second.
pub fn set_backlog(listener: &TcpListener, connections: i32) -> io::Result<()> {
    // SAFETY: listen(2) takes no pointers, and the descriptor is open for as long as the borrow.
    check(unsafe { libc::listen(listener.as_raw_fd(), connections) })
}

/// Bounds the bytes that the kernel keeps for a client that does not read, for each connection that is
/// accepted from now on. Left to itself it keeps some MiB, which a container pays for.
pub fn set_send_buffer(listener: &TcpListener, bytes: i32) -> io::Result<()> {
    let (fd, size) = (listener.as_raw_fd(), size_of::<i32>() as libc::socklen_t);
    // SAFETY: the pointer and the size describe one i32 that lives through the call, which only reads it.
    check(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, (&raw const bytes).cast(), size) })
}

/// The number of the socket, or other file, that this descriptor stands for; `None` if it stands for none.
pub fn socket_number(fd: i32) -> Option<u64> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the pointer is to a stat of ours; the kernel looks at any number, and fails for one that is no descriptor.
    let known = unsafe { libc::fstat(fd, stat.as_mut_ptr()) } == 0;
    // SAFETY: on success the kernel has filled it.
    known.then(|| unsafe { stat.assume_init() }.st_ino)
}

/// Has `server` serve a client through a connected socket, which does not block.
pub fn hand_over(server: &mut grpcio::Server, socket: UnixStream) {
    // SAFETY: a connected stream socket that nobody else has from here on; gRPC closes it.
    unsafe { server.add_channel_from_fd(socket.into_raw_fd()) };
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::Instant;

    #[test]
    fn reports_what_is_ready_and_waits_no_longer_than_told() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let mut set = [entry(&b, POLLIN), entry(&a, POLLOUT)];
        poll(&mut set, None).unwrap();
        assert_eq!((set[0].revents, set[1].revents), (0, POLLOUT));

        let start = Instant::now();
        poll(&mut set[..1], Some(Duration::from_millis(20))).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(20));

        a.write_all(b"x").unwrap();
        poll(&mut set[..1], None).unwrap();
        assert_eq!(set[0].revents, POLLIN);
    }
}
