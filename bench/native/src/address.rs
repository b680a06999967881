//! Addresses as URLs, spelt as Longshore spells them, and the sockets behind them.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::str::FromStr;

use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `tcp://host:port`
    Tcp(SocketAddr),
    /// `tls://host:port`
    Tls(SocketAddr),
    /// `udp://host:port`
    Udp(SocketAddr),
    /// `unix:///path`
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| {
            format!("{url:?} is no URL: write tcp://host:port, tls://host:port, udp://host:port or unix:///path")
        })?;
        let resolve = || {
            rest.to_socket_addrs()
                .map_err(|error| format!("{rest:?} cannot be resolved: {error}"))?
                .next()
                .ok_or_else(|| format!("{rest:?} has no address"))
        };
        match scheme {
            "tcp" => Ok(Self::Tcp(resolve()?)),
            "tls" => Ok(Self::Tls(resolve()?)),
            "udp" => Ok(Self::Udp(resolve()?)),
            "unix" if rest.starts_with('/') => Ok(Self::Unix(PathBuf::from(rest))),
            "unix" => Err(format!("{url:?} needs an absolute path: unix:///path")),
            _ => Err(format!("{scheme:?} is no known scheme: tcp, tls, udp, unix")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(out, "tcp://{address}"),
            Self::Tls(address) => write!(out, "tls://{address}"),
            Self::Udp(address) => write!(out, "udp://{address}"),
            Self::Unix(path) => write!(out, "unix://{}", path.display()),
        }
    }
}

impl Address {
    /// A non-blocking socket bound to this address, and listening where it is of a stream, with the address as bound.
    pub fn listen(&self) -> io::Result<(OwnedFd, Self)> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        match self {
            Self::Tcp(address) => {
                let socket = rustix::net::socket_with(family(address), SocketType::STREAM, flags, None)?;
                sockopt::set_socket_reuseaddr(&socket, true)?;
                rustix::net::bind(&socket, address)?;
                rustix::net::listen(&socket, 4096)?;
                let bound = bound_address(&socket)?;
                Ok((socket, Self::Tcp(bound)))
            }
            Self::Udp(address) => {
                let socket = rustix::net::socket_with(family(address), SocketType::DGRAM, flags, None)?;
                rustix::net::bind(&socket, address)?;
                let bound = bound_address(&socket)?;
                Ok((socket, Self::Udp(bound)))
            }
            Self::Unix(path) => {
                let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
                rustix::net::bind(&socket, &SocketAddrUnix::new(path.as_path())?)?;
                rustix::net::listen(&socket, 4096)?;
                Ok((socket, self.clone()))
            }
            Self::Tls(_) => Err(io::Error::other("the limit speaks no TLS")),
        }
    }

    /// A non-blocking socket that is being connected to this address, from the loopback address `source` if one is
    /// given.
    ///
    /// Connections that this side closes stay in TIME_WAIT for a minute and keep their port; many short ones from one
    /// address would run out of ports, so `churn` takes turns between addresses of 127.0.0.0/8.
    pub fn connect(&self, source: Option<Ipv4Addr>) -> io::Result<OwnedFd> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (socket, started) = match self {
            Self::Tcp(address) | Self::Tls(address) => {
                let socket = rustix::net::socket_with(family(address), SocketType::STREAM, flags, None)?;
                sockopt::set_tcp_nodelay(&socket, true)?;
                if let (Some(source), SocketAddr::V4(_)) = (source, address) {
                    defer_port(&socket)?;
                    rustix::net::bind(&socket, &SocketAddr::from((source, 0)))?;
                }
                let started = rustix::net::connect(&socket, address);
                (socket, started)
            }
            Self::Udp(address) => {
                let socket = rustix::net::socket_with(family(address), SocketType::DGRAM, flags, None)?;
                let started = rustix::net::connect(&socket, address);
                (socket, started)
            }
            Self::Unix(path) => {
                let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
                let started = rustix::net::connect(&socket, &SocketAddrUnix::new(path.as_path())?);
                (socket, started)
            }
        };
        match started {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether this address is of IPv4's loopback, where [`Address::connect`] may choose a source.
    pub fn is_loopback_v4(&self) -> bool {
        match self {
            Self::Tcp(address) | Self::Tls(address) => address.is_ipv4() && address.ip().is_loopback(),
            Self::Udp(_) | Self::Unix(_) => false,
        }
    }
}

fn family(address: &SocketAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

fn bound_address(socket: &OwnedFd) -> io::Result<SocketAddr> {
    SocketAddr::try_from(rustix::net::getsockname(socket)?).map_err(io::Error::from)
}

/// The port is chosen at connect(2), where the four-tuple is known, and not at bind(2), where it would be taken from
/// every destination.
fn defer_port(socket: &OwnedFd) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let yes: libc::c_int = 1;
    // SAFETY: the descriptor is open, and the option is a C int whose size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const yes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_spelt_as_it_was_read() {
        for url in ["tcp://127.0.0.1:5000", "tls://[::1]:443", "udp://127.0.0.1:53", "unix:///run/echo.sock"] {
            let address: Address = url.parse().expect(url);
            assert_eq!(address.to_string(), url);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_reason() {
        for (url, reason) in [
            ("127.0.0.1:5000", "is no URL"),
            ("http://127.0.0.1:80", "no known scheme"),
            ("unix://echo.sock", "absolute path"),
        ] {
            let error = url.parse::<Address>().expect_err(url);
            assert!(error.contains(reason), "{error}");
        }
    }
}
