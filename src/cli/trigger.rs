//! `raptor trigger`: one event through the HTTP API of a running server (`pusher.md` 5.5).

use std::io;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, header};
use raptor::auth::{Secret, SignedRequest, percent_decode};
use raptor::model::since_1970;
use raptor::transport::outbound::{Outbound, OutboundError, Reach};
use serde::Serialize;
use url::Url;

/// The development app where it is without configuration.
pub const DEVELOPMENT_URL: &str = "http://app-key:app-secret@127.0.0.1:6001/apps/app-id";

const TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: usize = 1_048_576;

/// An event to send and where to.
pub struct Trigger {
    /// `http://KEY:SECRET@HOST:PORT/apps/ID`
    pub url: String,
    pub channels: Vec<String>,
    pub event: String,
    /// `-` is read from stdin.
    pub data: String,
    pub socket_id: Option<String>,
}

impl Trigger {
    /// The body of the server's answer, or what went wrong in words.
    pub async fn send(self) -> Result<String, String> {
        let app = AppUrl::parse(&self.url)?;
        let body = Body {
            name: &self.event,
            channels: &self.channels,
            data: &match self.data.as_str() {
                "-" => stdin().map_err(|error| format!("cannot read stdin: {error}"))?,
                data => data.to_owned(),
            },
            socket_id: self.socket_id.as_deref(),
        };
        let body = serde_json::to_vec(&body).expect("a map of strings is JSON");
        let request = app.post_events(body);
        let https = app.origin.starts_with("https:");
        let answer = match Outbound::new(Reach::Everywhere, https) {
            Ok(outbound) => outbound.exchange(request, TIMEOUT, ANSWER_BYTES_MAX).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok((status, body)) => {
                let text = String::from_utf8_lossy(&body).trim_end().to_owned();
                match status.is_success() {
                    true => Ok(text),
                    false => Err(format!("the server answered {status}: {text}")),
                }
            }
            Err(OutboundError::Timeout) => Err(format!(
                "{} did not answer within {} seconds",
                app.origin,
                TIMEOUT.as_secs()
            )),
            Err(error) => Err(format!("cannot reach {}: {error}", app.origin)),
        }
    }
}

#[derive(Serialize)]
struct Body<'a> {
    name: &'a str,
    channels: &'a [String],
    data: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket_id: Option<&'a str>,
}

/// All there is on stdin but for one line end, as in a shell's `$(…)`.
fn stdin() -> io::Result<String> {
    let mut text = io::read_to_string(io::stdin())?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

/// An app's URL taken apart. Its secret is never part of a message.
struct AppUrl {
    /// `http://HOST:PORT`
    origin: String,
    /// What stands before `/apps/ID`, which signatures leave out.
    prefix: String,
    id: String,
    key: String,
    secret: Secret,
}

impl AppUrl {
    fn parse(text: &str) -> Result<Self, String> {
        let wanted = |what: &str| {
            format!("the app's URL {what}: write it as http://KEY:SECRET@HOST:PORT/apps/ID")
        };
        let url = Url::parse(text).map_err(|error| wanted(&format!("is wrong ({error})")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wanted("is neither http nor https"));
        }
        let (Some(secret), false) = (url.password(), url.username().is_empty()) else {
            return Err(wanted("lacks the key or the secret"));
        };
        let path = url.path().trim_end_matches('/');
        let Some((prefix, id)) = path
            .rsplit_once('/')
            .and_then(|(apps, id)| Some((apps.strip_suffix("/apps")?, id)))
        else {
            return Err(wanted("does not end in /apps/ID"));
        };
        Ok(Self {
            origin: url.origin().ascii_serialization(),
            prefix: prefix.to_owned(),
            id: id.to_owned(),
            key: percent_decode(url.username()).into_owned(),
            secret: Secret::new(&percent_decode(secret)),
        })
    }

    fn post_events(&self, body: Vec<u8>) -> Request<Full<Bytes>> {
        let path = format!("/apps/{}/events", self.id);
        let query = SignedRequest {
            method: "POST",
            path: &path,
            query: "",
            body: &body,
        }
        .signed_query(since_1970().as_secs(), &self.key, &self.secret);
        let library = concat!("raptor ", env!("CARGO_PKG_VERSION"));
        Request::post(format!("{}{}{path}?{query}", self.origin, self.prefix))
            .header(header::CONTENT_TYPE, "application/json")
            .header("X-Pusher-Library", library)
            .body(Full::from(body))
            .expect("the parts of a valid URL make a valid URL")
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    use super::*;

    /// Answers one request with `answer` and returns it: head and body.
    async fn scripted(answer: &'static str) -> (SocketAddr, JoinHandle<(String, String)>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut read = String::new();
            loop {
                let mut bytes = [0; 4096];
                let count = stream.read(&mut bytes).await.unwrap();
                assert_ne!(count, 0, "{read}");
                read += std::str::from_utf8(&bytes[..count]).unwrap();
                if let Some((head, body)) = read.split_once("\r\n\r\n")
                    && head.contains(&format!("content-length: {}", body.len()))
                {
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    return (head.to_owned(), body.to_owned());
                }
            }
        });
        (address, served)
    }

    fn hello(url: String) -> Trigger {
        Trigger {
            url,
            channels: vec!["a".to_owned(), "b".to_owned()],
            event: "hello".to_owned(),
            data: r#"{"x":"é"}"#.to_owned(),
            socket_id: Some("1.2".to_owned()),
        }
    }

    #[tokio::test]
    async fn the_event_is_posted_with_a_signature_that_leaves_out_the_prefix() {
        let (address, served) = scripted("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
        let url = format!("http://k:s%2Fs@{address}/realtime/apps/3");
        assert_eq!(hello(url).send().await, Ok("{}".to_owned()));

        let (head, body) = served.await.unwrap();
        let target = head.strip_prefix("POST /realtime/apps/3/events?").unwrap();
        let (query, _) = target.split_once(" HTTP/1.1\r\n").unwrap();
        let request = SignedRequest {
            method: "POST",
            path: "/apps/3/events",
            query,
            body: body.as_bytes(),
        };
        let now = since_1970().as_secs();
        let secret = Secret::new("s/s");
        let verified = request.verify(now, |key| (key == "k").then_some(&secret));
        assert_eq!(verified.err(), None);
        assert_eq!(
            body,
            r#"{"name":"hello","channels":["a","b"],"data":"{\"x\":\"é\"}","socket_id":"1.2"}"#
        );
        assert!(head.contains("content-type: application/json"), "{head}");
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_the_servers_words() {
        let (address, served) =
            scripted("HTTP/1.1 401 Unauthorized\r\ncontent-length: 17\r\n\r\nUnknown auth_key\n")
                .await;
        let outcome = hello(format!("http://k:s@{address}/apps/3")).send().await;
        let text = "the server answered 401 Unauthorized: Unknown auth_key";
        assert_eq!(outcome, Err(text.to_owned()));
        served.await.unwrap();
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = hello(format!("http://k:hush@{address}/apps/3"))
            .send()
            .await;
        let error = error.unwrap_err();
        assert!(
            error.starts_with(&format!("cannot reach http://{address}: ")),
            "{error}"
        );
        assert!(error.contains("refused"), "{error}");
        assert!(!error.contains("hush"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let error = hello(format!("http://k:s@{address}/apps/3")).send().await;
        let text = format!("http://{address} did not answer within 10 seconds");
        assert_eq!(error, Err(text));
    }

    #[test]
    fn an_apps_url_has_a_key_a_secret_and_an_id() {
        assert!(AppUrl::parse(DEVELOPMENT_URL).is_ok());
        let url = AppUrl::parse("https://k:s@api.example/a/b/apps/3/")
            .ok()
            .unwrap();
        assert_eq!(url.origin, "https://api.example");
        assert_eq!(url.prefix, "/a/b");
        assert_eq!(url.id, "3");

        for (text, complaint) in [
            ("", "is wrong"),
            ("127.0.0.1:6001", "is wrong"),
            ("ws://k:hush@h/apps/3", "neither http nor https"),
            ("http://h/apps/3", "lacks"),
            ("http://hush@h/apps/3", "lacks"),
            ("http://:hush@h/apps/3", "lacks"),
            ("http://k:hush@h", "/apps/ID"),
            ("http://k:hush@h/apps/", "/apps/ID"),
            ("http://k:hush@h/apps/3/events", "/apps/ID"),
            ("http://k:hush@h/3", "/apps/ID"),
        ] {
            let error = AppUrl::parse(text).err().unwrap();
            assert!(error.contains(complaint), "{text}: {error}");
            assert!(!error.contains("hush"), "{error}");
        }
    }
}
