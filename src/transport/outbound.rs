//! HTTP requests that we make. HTTP/1.1 only, no redirects, bounded in time and in bytes.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use std::vec;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower_service::Service;

/// A connection that was used may wait so long for the next request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const IDLE_CONNECTIONS_MAX: usize = 16;

/// Makes requests and keeps their connections for the next ones.
#[derive(Clone)]
pub struct Outbound {
    client: Scheme,
    reach: Reach,
}

#[derive(Clone)]
enum Scheme {
    Http(Client<HttpConnector<Resolver>, Full<Bytes>>),
    /// And http.
    Https(Client<HttpsConnector<HttpConnector<Resolver>>, Full<Bytes>>),
}

/// Which addresses may be connected to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    Everywhere,
    /// Not this machine, nor a private network: what a stranger's URL must not lead to.
    Public,
}

#[derive(Debug)]
pub enum OutboundError {
    /// `SSL_CERT_FILE` names a file with some.
    NoCertificateAuthorities,
    /// The address, or every address of the name.
    NotPublic,
    Timeout,
    /// Of connecting, of TLS, or of HTTP.
    Failed(Box<dyn Error + Send + Sync>),
}

impl Outbound {
    /// `https`: whether it will be asked for https URLs. Certificate authorities are looked for
    /// only then: many small images have none.
    pub fn new(reach: Reach, https: bool) -> Result<Self, OutboundError> {
        let mut http = HttpConnector::new_with_resolver(Resolver {
            names: GaiResolver::new(),
            reach,
        });
        http.set_nodelay(true);
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX);
        let client = if https {
            http.enforce_http(false);
            let connector = HttpsConnectorBuilder::new()
                .with_native_roots()
                .map_err(|_| OutboundError::NoCertificateAuthorities)?;
            let connector = connector.https_or_http().enable_http1();
            Scheme::Https(builder.build(connector.wrap_connector(http)))
        } else {
            Scheme::Http(builder.build(http))
        };
        Ok(Self { client, reach })
    }

    /// The status and the body of the answer, and no more than `bytes_max` of that: what exceeds
    /// them is not waited for. An answer that breaks off before is none.
    pub async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        timeout: Duration,
        bytes_max: usize,
    ) -> Result<(StatusCode, Vec<u8>), OutboundError> {
        let host = request.uri().host().unwrap_or_default();
        let literal = host.trim_matches(['[', ']']).parse::<IpAddr>();
        if literal.is_ok_and(|address| !self.reach.allows(address)) {
            return Err(OutboundError::NotPublic);
        }
        let exchanged = tokio::time::timeout(timeout, async {
            let answer = match &self.client {
                Scheme::Http(client) => client.request(request).await,
                Scheme::Https(client) => client.request(request).await,
            };
            read(answer.map_err(OutboundError::failed)?, bytes_max).await
        });
        exchanged.await.unwrap_or(Err(OutboundError::Timeout))
    }
}

async fn read(
    answer: Response<hyper::body::Incoming>,
    bytes_max: usize,
) -> Result<(StatusCode, Vec<u8>), OutboundError> {
    let status = answer.status();
    let mut body = answer.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(OutboundError::failed)?;
        if let Some(data) = frame.data_ref() {
            let room = bytes_max - bytes.len();
            if data.len() > room {
                bytes.extend_from_slice(&data[..room]);
                break;
            }
            bytes.extend_from_slice(data);
        }
    }
    Ok((status, bytes))
}

impl OutboundError {
    fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let error = error.into();
        match is_not_public(&*error) {
            true => Self::NotPublic,
            false => Self::Failed(error),
        }
    }
}

fn is_not_public(error: &(dyn Error + 'static)) -> bool {
    error.is::<NotPublic>()
        || (error.downcast_ref::<std::io::Error>())
            .and_then(std::io::Error::get_ref)
            .is_some_and(|inner| is_not_public(inner))
        || error.source().is_some_and(is_not_public)
}

impl Error for OutboundError {}

impl fmt::Display for OutboundError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCertificateAuthorities => {
                f.write_str("this machine has no certificate authorities (see SSL_CERT_FILE)")
            }
            Self::NotPublic => NotPublic.fmt(f),
            Self::Timeout => f.write_str("no answer in time"),
            Self::Failed(error) => f.write_str(&causes(&**error)),
        }
    }
}

/// An error with what caused it, outermost first.
fn causes(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", causes(source)),
        None => error.to_string(),
    }
}

/// Looks names up and drops addresses that may not be connected to. The connection is made to what
/// it returns, so that no second look-up can lead elsewhere.
#[derive(Clone)]
struct Resolver {
    names: GaiResolver,
    reach: Reach,
}

#[derive(Debug)]
struct NotPublic;

impl Error for NotPublic {}

impl fmt::Display for NotPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the address is on this machine or in a private network")
    }
}

impl Service<Name> for Resolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.names.poll_ready(cx)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (found, reach) = (self.names.call(name), self.reach);
        Box::pin(async move {
            let found: Vec<_> = found.await?.collect();
            let allowed = found.iter().filter(|address| reach.allows(address.ip()));
            let allowed: Vec<_> = allowed.copied().collect();
            match allowed.is_empty() && !found.is_empty() {
                true => Err(std::io::Error::other(NotPublic)),
                false => Ok(allowed.into_iter()),
            }
        })
    }
}

impl Reach {
    pub fn allows(self, address: IpAddr) -> bool {
        self == Self::Everywhere || is_public(address)
    }
}

/// Whether IANA's registries of special addresses call it globally reachable.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !matches!(
        (a, b, c),
        (0 | 10 | 127, _, _)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
            | (224.., _, _)
    )
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let v4 = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        // The same IPv4 addresses through a translator, and 6to4.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        // Teredo and other special uses; documentation.
        [0x2001, 0..0x200, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..0x1000, ..] => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn only_addresses_of_the_public_internet_are_public() {
        for public in [
            "1.1.1.1",
            "100.63.0.1",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "192.169.0.1",
            "198.17.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2001:4860::8888",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
            "2002:101:101::1",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for private in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "3fff::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
    }

    fn request(url: &str) -> Request<Full<Bytes>> {
        Request::post(url).body(Full::default()).unwrap()
    }

    #[tokio::test]
    async fn a_private_address_is_not_connected_to_in_whatever_way_it_is_written() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let outbound = Outbound::new(Reach::Public, false).unwrap();
        for host in [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f.1",
            "localhost",
            "0.0.0.0",
            "[::1]",
            "[::ffff:127.0.0.1]",
        ] {
            let request = request(&format!("http://{host}:{port}/"));
            let refused = outbound.exchange(request, SECOND, 0).await;
            let refused = refused.unwrap_err();
            assert!(
                matches!(refused, OutboundError::NotPublic),
                "{host}: {refused}"
            );
        }
        let connected = tokio::time::timeout(Duration::from_millis(10), listener.accept());
        assert!(connected.await.is_err());
    }

    /// Answers as many requests on one connection as there are answers; returns how many
    /// connections there were.
    async fn server(answers: &'static [&'static str]) -> (u16, tokio::task::JoinHandle<usize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = tokio::spawn(async move {
            let mut connections = 0;
            let mut answers = answers.iter();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                connections += 1;
                let mut bytes = [0; 4096];
                while stream.read(&mut bytes).await.unwrap_or(0) > 0 {
                    let Some(answer) = answers.next() else {
                        return connections;
                    };
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    if answers.len() == 0 {
                        return connections;
                    }
                    if answer.contains("10000000") {
                        break;
                    }
                }
            }
        });
        (port, served)
    }

    #[tokio::test]
    async fn connections_are_used_again_and_answers_are_bounded() {
        const REDIRECT: &str = "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\n\
                                content-length: 2\r\n\r\nno";
        const ENDLESS: &str = "HTTP/1.1 200 OK\r\ncontent-length: 10000000\r\n\r\nabc";
        const SHORT: &str = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc";
        let (port, served) = server(&[REDIRECT, REDIRECT, ENDLESS, SHORT]).await;
        let outbound = Outbound::new(Reach::Everywhere, false).unwrap();
        let url = format!("http://127.0.0.1:{port}/");
        let exchange = async || outbound.exchange(request(&url), SECOND, 2).await;
        for _ in 0..2 {
            let (status, body) = exchange().await.unwrap();
            assert_eq!((status.as_u16(), body.as_slice()), (302, &b"no"[..]));
        }
        let (status, body) = exchange().await.unwrap();
        assert_eq!((status.as_u16(), body.as_slice()), (200, &b"ab"[..]));
        let cut_off = outbound.exchange(request(&url), SECOND, 100).await;
        assert!(matches!(cut_off, Err(OutboundError::Failed(_))));
        assert_eq!(served.await.unwrap(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let outbound = Outbound::new(Reach::Everywhere, false).unwrap();
        let answer = outbound.exchange(request(&url), 10 * SECOND, 0).await;
        assert!(matches!(answer, Err(OutboundError::Timeout)));
    }
}
