//! A stream socket that never waits, plain or under TLS.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::net::{RecvFlags, SendFlags};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// Whom a TLS client trusts, and whom it expects.
#[derive(Clone)]
pub struct Trust {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Trust {
    /// Trust the certificates of a PEM file, and expect the server to show one for `name`.
    pub fn from_pem(path: &Path, name: &str) -> Result<Self, String> {
        let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| fail(&error))? {
            roots.add(certificate.map_err(|error| fail(&error))?).map_err(|error| fail(&error))?;
        }
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).map_err(|error| format!("{name:?}: {error}"))?;
        Ok(Self { config: Arc::new(config), name })
    }
}

/// A connected stream, or one that is being connected.
pub enum Channel {
    /// TCP or a Unix socket.
    Plain(OwnedFd),
    /// TLS over TCP.
    Secure(TcpStream, Box<ClientConnection>),
}

impl Channel {
    /// A channel over a non-blocking socket.
    pub fn new(socket: OwnedFd, trust: Option<&Trust>) -> io::Result<Self> {
        match trust {
            None => Ok(Self::Plain(socket)),
            Some(Trust { config, name }) => {
                let session = ClientConnection::new(config.clone(), name.clone()).map_err(io::Error::other)?;
                Ok(Self::Secure(TcpStream::from(socket), Box::new(session)))
            }
        }
    }

    /// Read what is there; `Ok(0)` is the end of the stream.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => Ok(rustix::net::recv(socket, &mut *buffer, RecvFlags::empty())?.0),
            Self::Secure(stream, session) => loop {
                match session.reader().read(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return result,
                }
                if session.read_tls(stream)? == 0 {
                    return Ok(0);
                }
                session.process_new_packets().map_err(io::Error::other)?;
                write_records(stream, session)?;
            },
        }
    }

    /// Write as much as there is room for.
    pub fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => Ok(rustix::net::send(socket, data, SendFlags::NOSIGNAL)?),
            Self::Secure(stream, session) => {
                write_records(stream, session)?;
                let taken = session.writer().write(data)?;
                write_records(stream, session)?;
                if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
            }
        }
    }

    /// Write what TLS keeps; returns whether something is left.
    pub fn flush(&mut self) -> io::Result<bool> {
        match self {
            Self::Plain(_) => Ok(false),
            Self::Secure(stream, session) => {
                write_records(stream, session)?;
                Ok(session.wants_write())
            }
        }
    }

    /// Whether a short read means that the socket is empty.
    pub fn is_plain(&self) -> bool {
        matches!(self, Self::Plain(_))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Plain(socket) => socket.as_fd(),
            Self::Secure(stream, _) => stream.as_fd(),
        }
    }
}

fn write_records(stream: &mut TcpStream, session: &mut ClientConnection) -> io::Result<()> {
    while session.wants_write() {
        match session.write_tls(stream) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
