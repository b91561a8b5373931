//! The server to load: where it is and what it speaks.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::SystemTime;

use url::Url;

use crate::auth::{Secret, SignedRequest, subscription_text};

pub struct Target {
    /// As given, without credentials.
    pub url: String,
    pub address: SocketAddr,
    pub protocol: Protocol,
}

pub enum Protocol {
    Pusher(App),
    /// The path of its mount, such as `/faye`.
    Bayeux(String),
}

pub struct App {
    /// What stands before `/app/…` and `/apps/…`; signatures leave it out.
    pub prefix: String,
    pub id: String,
    pub key: String,
    pub secret: Secret,
}

/// Why an address is not loaded.
#[derive(Debug, PartialEq, Eq)]
pub enum Unsuitable {
    Url(String),
    /// `http` and `ws` only: what TLS costs would be measured at both ends.
    Tls,
    Unresolved(String),
    /// Not this machine, and nobody said that this is meant.
    Remote(SocketAddr),
}

impl fmt::Display for Unsuitable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(error) => write!(f, "the server's address is wrong: {error}"),
            Self::Tls => {
                f.write_str("the load is sent without TLS: give the http address behind the proxy")
            }
            Self::Unresolved(error) => write!(f, "the server's address is not known: {error}"),
            Self::Remote(address) => write!(
                f,
                "{address} is not this machine: a load test of a server that others use, or of a \
                 provider's, disturbs it and may be against its terms; add --remote if you may do that"
            ),
        }
    }
}

impl Target {
    /// `url` is `http://HOST:PORT[/PREFIX]`.
    pub fn pusher(
        url: &str,
        (id, key, secret): (&str, &str, &str),
        may_be_remote: bool,
    ) -> Result<Self, Unsuitable> {
        Self::new(url, may_be_remote, |path| {
            Protocol::Pusher(App {
                prefix: path.trim_end_matches('/').to_owned(),
                id: id.to_owned(),
                key: key.to_owned(),
                secret: Secret::new(secret),
            })
        })
    }

    /// `url` is `http://HOST:PORT/MOUNT`.
    pub fn bayeux(url: &str, may_be_remote: bool) -> Result<Self, Unsuitable> {
        Self::new(url, may_be_remote, |path| Protocol::Bayeux(path.to_owned()))
    }

    fn new(
        url: &str,
        may_be_remote: bool,
        protocol: impl FnOnce(&str) -> Protocol,
    ) -> Result<Self, Unsuitable> {
        let url = Url::parse(url).map_err(|error| Unsuitable::Url(error.to_string()))?;
        match url.scheme() {
            "http" | "ws" => {}
            "https" | "wss" => return Err(Unsuitable::Tls),
            other => return Err(Unsuitable::Url(format!("{other} is neither http nor ws"))),
        }
        let host = url.host_str().unwrap_or_default();
        let port = url.port().unwrap_or(80);
        let addresses = (host.trim_matches(['[', ']']), port).to_socket_addrs();
        let addresses: Vec<_> = addresses
            .map_err(|error| Unsuitable::Unresolved(error.to_string()))?
            .collect();
        // `localhost` may be both ::1 and 127.0.0.1, and servers listen mostly on the latter.
        let preferred = addresses.iter().find(|address| address.is_ipv4());
        let address = *preferred
            .or(addresses.first())
            .ok_or_else(|| Unsuitable::Unresolved(host.to_owned()))?;
        if !address.ip().is_loopback() && !may_be_remote {
            return Err(Unsuitable::Remote(address));
        }
        let protocol = protocol(url.path());
        Ok(Self {
            url: format!("{}://{host}:{port}{}", url.scheme(), url.path()),
            address,
            protocol,
        })
    }

    pub fn protocol_name(&self) -> &'static str {
        match self.protocol {
            Protocol::Pusher(_) => "pusher",
            Protocol::Bayeux(_) => "bayeux",
        }
    }

    /// As a channel is named on the wire. No other run has it: Bayeux sessions of one that ended live
    /// on for a while, and would have their share of what is published.
    pub fn channel(&self, name: &str) -> String {
        let name = format!("bench-{}-{name}", std::process::id());
        match self.protocol {
            Protocol::Pusher(_) => name,
            Protocol::Bayeux(_) => format!("/{name}"),
        }
    }

    /// As [`Target::channel`]. Where there are private channels it is one.
    pub fn private_channel(&self, name: &str) -> String {
        let channel = self.channel(name);
        match self.protocol {
            Protocol::Pusher(_) => format!("private-{channel}"),
            Protocol::Bayeux(_) => channel,
        }
    }

    /// Where to connect a WebSocket.
    pub fn websocket_path(&self) -> String {
        match &self.protocol {
            Protocol::Pusher(app) => format!(
                "{}/app/{}?protocol=7&client=raptor-bench&version={}",
                app.prefix,
                app.key,
                env!("CARGO_PKG_VERSION")
            ),
            Protocol::Bayeux(path) => path.clone(),
        }
    }

    /// Target and body of the request that publishes `data`, which needs no escapes.
    pub fn publish(&self, channel: &str, data: &str) -> (String, String) {
        match &self.protocol {
            Protocol::Pusher(app) => {
                let body = format!(r#"{{"name":"bench","channel":"{channel}","data":"{data}"}}"#);
                (app.signed("events", &body), body)
            }
            Protocol::Bayeux(path) => {
                let body = format!(r#"[{{"channel":"{channel}","data":"{data}"}}]"#);
                (path.clone(), body)
            }
        }
    }
}

impl App {
    fn signed(&self, what: &str, body: &str) -> String {
        let path = format!("/apps/{}/{what}", self.id);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let query = SignedRequest {
            method: "POST",
            path: &path,
            query: "",
            body: body.as_bytes(),
        }
        .signed_query(now.unwrap_or_default().as_secs(), &self.key, &self.secret);
        format!("{}{path}?{query}", self.prefix)
    }

    /// The `auth` of a subscription.
    pub fn auth(&self, socket_id: &str, channel: &str, channel_data: Option<&str>) -> String {
        let text = subscription_text(socket_id, channel, channel_data);
        format!("{}:{}", self.key, self.secret.sign(text.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> Unsuitable {
        Target::bayeux(url, false).err().unwrap()
    }

    #[test]
    fn only_this_machine_is_loaded_unless_more_is_meant() {
        let far = "http://192.0.2.1:6001/faye";
        assert!(matches!(refusal(far), Unsuitable::Remote(_)));
        assert!(refusal(far).to_string().contains("--remote"));
        assert!(Target::bayeux(far, true).is_ok());
        for near in ["http://127.0.0.1:1/faye", "ws://[::1]:1/faye"] {
            assert!(Target::bayeux(near, false).is_ok(), "{near}");
        }
    }

    #[test]
    fn an_address_that_cannot_be_loaded_is_refused_in_words() {
        assert_eq!(refusal("https://127.0.0.1/faye"), Unsuitable::Tls);
        assert!(matches!(refusal("ftp://127.0.0.1"), Unsuitable::Url(_)));
        assert!(matches!(refusal("127.0.0.1:6001"), Unsuitable::Url(_)));
    }

    #[test]
    fn the_prefix_stands_before_the_path_and_not_in_the_signature() {
        let target = Target::pusher("http://127.0.0.1:1/rt/", ("3", "k", "s"), false);
        let target = target.ok().unwrap();
        assert!(target.websocket_path().starts_with("/rt/app/k?protocol=7"));
        let (url, body) = target.publish("room", "x");
        let query = url.strip_prefix("/rt/apps/3/events?").unwrap();
        let request = SignedRequest {
            method: "POST",
            path: "/apps/3/events",
            query,
            body: body.as_bytes(),
        };
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let secret = Secret::new("s");
        let verified = request.verify(now, |key| (key == "k").then_some(&secret));
        assert!(verified.is_ok());
    }
}
