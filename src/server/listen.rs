//! Where clients come in: TCP, with TLS or without, and a Unix socket; each of them behind a proxy
//! that says for whom it connects, or not.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
#[cfg(unix)]
use std::path::PathBuf;

use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
#[cfg(unix)]
use tokio::net::UnixListener;

use super::tls::Certificate;
#[cfg(unix)]
use crate::config::UnixSettings;
use crate::metrics::{CUT_OFFS, CutOff};
use crate::transport::peer::{Peer, TrustedProxies};
use crate::transport::receipt::Connection;
use crate::transport::socket::Socket;
use crate::wire::proxy;

pub struct Listener {
    bound: Bound,
    pub greeting: Greeting,
}

enum Bound {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix {
        listener: UnixListener,
        _file: SocketFile,
    },
}

/// How a new connection is made ready for its first request.
#[derive(Clone)]
pub struct Greeting {
    pub certificate: Option<Certificate>,
    /// Connections begin with the header of a proxy.
    pub proxy_protocol: bool,
}

impl Listener {
    pub async fn tcp(address: SocketAddr, greeting: Greeting) -> io::Result<Self> {
        let bound = TcpListener::bind(address).await;
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
        let listener = bound.map_err(named)?;
        // An event is worth sending by itself; waiting for more is the outbox's business. Connections
        // have it from their listener.
        SockRef::from(&listener).set_tcp_nodelay(true)?;
        Ok(Self {
            bound: Bound::Tcp(listener),
            greeting,
        })
    }

    /// Takes the place of a socket that nobody listens on any more.
    #[cfg(unix)]
    pub fn unix(settings: &UnixSettings) -> io::Result<Self> {
        let path = settings.listen.value.clone();
        let bound = bind(&path, settings.mode);
        let (listener, _file) = bound.map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
        Ok(Self {
            bound: Bound::Unix { listener, _file },
            greeting: Greeting {
                certificate: None,
                proxy_protocol: settings.proxy_protocol,
            },
        })
    }

    /// `None` for a Unix socket.
    pub fn address(&self) -> io::Result<Option<SocketAddr>> {
        match &self.bound {
            Bound::Tcp(listener) => listener.local_addr().map(Some),
            #[cfg(unix)]
            Bound::Unix { .. } => Ok(None),
        }
    }

    /// A connection and who is at its other end. Whoever comes by a Unix socket is of this machine.
    pub async fn accept(&self) -> io::Result<(Socket, IpAddr)> {
        match &self.bound {
            Bound::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                Ok((stream.into(), address.ip().to_canonical()))
            }
            #[cfg(unix)]
            Bound::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                Ok((stream.into(), Ipv4Addr::LOCALHOST.into()))
            }
        }
    }
}

impl Greeting {
    /// What comes before HTTP. `None` for who does not begin as it has to.
    pub async fn meet(
        self,
        mut socket: Socket,
        address: IpAddr,
        trusted: &TrustedProxies,
    ) -> Option<(Connection, Peer)> {
        let mut peer = Peer {
            address,
            secure: false,
            certified: false,
        };
        if self.proxy_protocol {
            // Anybody else could claim to be whoever it likes.
            let origin = match trusted.contains(address) {
                true => origin(&mut socket).await,
                false => Err(io::Error::other("no trusted proxy")),
            };
            match origin {
                Ok(proxy::Origin::Proxy) => {}
                Ok(proxy::Origin::Client { address, secure }) => {
                    peer.address = address.ip().to_canonical();
                    peer.secure = secure;
                }
                Err(error) => {
                    CUT_OFFS.count(CutOff::ProxyHeader);
                    tracing::debug!(%address, %error, "no header of a proxy");
                    return None;
                }
            }
        }
        let Some(certificate) = self.certificate else {
            return Some((Connection::Plain(socket), peer));
        };
        match certificate.acceptor().accept(socket).await {
            Ok(stream) => {
                peer.secure = true;
                peer.certified = stream.get_ref().1.peer_certificates().is_some();
                Some((Connection::Tls(Box::new(stream)), peer))
            }
            Err(error) => {
                CUT_OFFS.count(CutOff::TlsHandshake);
                tracing::debug!(%address, %error, "no TLS");
                None
            }
        }
    }
}

/// Reads the header and not a byte more.
async fn origin(socket: &mut Socket) -> io::Result<proxy::Origin> {
    let malformed = |why| io::Error::other(format!("{why:?}"));
    let mut start = [0; proxy::START_BYTES];
    socket.read_exact(&mut start).await?;
    let mut rest = vec![0; proxy::rest_bytes(&start).map_err(malformed)?];
    socket.read_exact(&mut rest).await?;
    proxy::parse(&start, &rest).map_err(malformed)
}

/// Removed with its listener, unless somebody else's is there by then.
#[cfg(unix)]
struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

#[cfg(unix)]
fn bind(path: &PathBuf, mode: u32) -> io::Result<(UnixListener, SocketFile)> {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
    use std::os::unix::net::UnixStream;

    let is_socket = |path| fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if is_socket(path) {
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path)?
            }
            _ => return Err(io::ErrorKind::AddrInUse.into()),
        }
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    let made = fs::symlink_metadata(path)?;
    let file = SocketFile {
        path: path.clone(),
        device_and_inode: (made.dev(), made.ino()),
    };
    Ok((listener, file))
}

#[cfg(unix)]
impl Drop for SocketFile {
    fn drop(&mut self) {
        use std::os::unix::fs::MetadataExt;
        let found = std::fs::symlink_metadata(&self.path);
        if found.is_ok_and(|found| (found.dev(), found.ino()) == self.device_and_inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn what_is_sent_to_a_client_does_not_wait_for_more() {
        let greeting = Greeting {
            certificate: None,
            proxy_protocol: false,
        };
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = Listener::tcp(any, greeting).await.unwrap();
        let address = listener.address().unwrap().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        assert!(accepted.unwrap().0.raw().tcp_nodelay().unwrap());
        drop(client);
    }
}
