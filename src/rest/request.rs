//! From a request to the call of an app (`pusher.md` 5.2–5.4).

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Buf;
use http_body_util::BodyDataStream;
use hyper::body::Body;
use warp::http::{self, Method, Uri};

use super::Front;
use super::error::ApiError;
use crate::apps::App;
use crate::audit::{Caller, Stranger};
use crate::auth::{AuthError, Parameters, SignedRequest, percent_decode};
use crate::broker::Broker;
use crate::metrics::{Limit, REFUSALS};
use crate::model::ChannelName;
use crate::transport::http::read_body;
use crate::transport::peer::Peer;

/// What the paths of the API take.
#[derive(Clone, Copy)]
pub enum Methods {
    /// And HEAD, which is signed as such and answered like GET without the body.
    Get,
    Post,
}

/// A request to a path of the API, from whomever.
pub struct Request {
    front: Arc<Front>,
    methods: Methods,
    method: Method,
    uri: Uri,
    body: Result<Vec<u8>, ApiError>,
    peer: Peer,
}

/// What an app is known to have asked for.
pub struct Call {
    pub broker: Arc<Broker>,
    pub app: Arc<App>,
    pub parameters: Parameters,
    pub body: Vec<u8>,
    address: IpAddr,
}

impl Request {
    /// With its body, or why there is none.
    pub async fn receive(
        front: Arc<Front>,
        methods: Methods,
        request: http::Request<impl Body<Data: Buf>>,
        peer: Peer,
    ) -> Self {
        let (parts, body) = request.into_parts();
        let chunks = BodyDataStream::new(body);
        let body = read_body(&parts.headers, chunks, front.request_body_bytes_max).await;
        Self {
            front,
            methods,
            method: parts.method,
            uri: parts.uri,
            body: body.map_err(ApiError::from),
            peer,
        }
    }

    /// The call, if it comes from the app whose id stands percent-encoded in the path.
    pub fn of_app(self, app_id: &str) -> Result<Call, ApiError> {
        self.check_method()?;
        let app = self.front.apps.by_id(&percent_decode(app_id));
        self.of(app.ok_or(ApiError::UnknownApp)?)
    }

    /// The call, if it comes from the app whose key it names.
    pub fn of_key(self) -> Result<Call, ApiError> {
        self.check_method()?;
        let mut parameters = url::form_urlencoded::parse(self.query().as_bytes());
        let (_, key) = parameters
            .find(|(name, _)| name.eq_ignore_ascii_case("auth_key"))
            .ok_or(AuthError::MissingKey)?;
        let app = self.front.apps.by_key(&key).ok_or(AuthError::UnknownKey)?;
        self.of(app)
    }

    fn query(&self) -> &str {
        self.uri.query().unwrap_or_default()
    }

    fn check_method(&self) -> Result<(), ApiError> {
        let (has_method, names) = match self.methods {
            Methods::Get => (
                matches!(self.method, Method::GET | Method::HEAD),
                "GET, HEAD",
            ),
            Methods::Post => (self.method == Method::POST, "POST"),
        };
        has_method
            .then_some(())
            .ok_or(ApiError::MethodNotAllowed(names))
    }

    fn of(mut self, app: Arc<App>) -> Result<Call, ApiError> {
        if self.front.wants_client_certificate && !self.peer.certified {
            REFUSALS.count(Limit::ClientCertificate);
            self.note_refused(&app, "client_certificate");
            return Err(ApiError::NoClientCertificate);
        }
        let body = std::mem::replace(&mut self.body, Ok(Vec::new()))?;
        let signed = SignedRequest {
            method: self.method.as_str(),
            path: self.uri.path(),
            query: self.query(),
            body: &body,
        };
        let verified = signed.verify((self.front.clock)(), |key| {
            app.key(key).map(|active| &active.secret)
        });
        let parameters = verified.inspect_err(|error| {
            REFUSALS.count(Limit::Signature);
            self.note_refused(&app, error.kind());
        })?;
        if !app.enabled {
            return Err(ApiError::AppDisabled);
        }
        Ok(Call {
            broker: self.front.broker.clone(),
            app,
            parameters,
            body,
            address: self.peer.address,
        })
    }

    fn note_refused(&self, app: &App, why: &str) {
        let mut parameters = url::form_urlencoded::parse(self.query().as_bytes());
        let key = parameters.find(|(name, _)| name.eq_ignore_ascii_case("auth_key"));
        let key = key.filter(|(_, key)| app.key(key).is_some());
        let caller = Stranger {
            app: Some(&app.id),
            key: key.as_ref().map(|(_, key)| &**key),
            address: Some(self.peer.address),
        };
        caller.refused(why);
    }
}

impl Call {
    pub fn caller(&self) -> Caller<'_> {
        Caller {
            app: &self.app.id,
            key: self.parameters.get("auth_key").unwrap_or_default(),
            address: self.address,
        }
    }

    pub fn channel(&self, name: &str) -> Result<ChannelName, ApiError> {
        let chars_max = self.app.limits.channel_name_chars_max;
        ChannelName::parse(name, chars_max).map_err(|why| ApiError::InvalidChannelName {
            name: name.to_owned(),
            why,
        })
    }

    /// The channel that stands percent-encoded in the path.
    pub fn channel_in_path(&self, segment: &str) -> Result<ChannelName, ApiError> {
        self.channel(&percent_decode(segment))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::{Stream, StreamExt, stream};
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use serde_json::Value;
    use warp::http;
    use warp::http::header::ALLOW;

    use super::super::testing::*;

    const EVENT: &str = r#"{"name":"e","channels":["c"],"data":"x"}"#;

    #[tokio::test]
    async fn the_published_requests_are_answered_and_refused_with_another_signature() {
        let vectors = include_str!("../../fixtures/pusher/requests.json");
        let vectors: Value = serde_json::from_str(vectors).unwrap();
        let vectors = vectors["requests"].as_array().unwrap();
        assert_eq!(vectors.len(), 12);
        for vector in vectors {
            let text = |member: &str| vector[member].as_str().unwrap();
            let (name, signature) = (text("name"), text("signature"));
            let target = |signature: &str| {
                let (path, query) = (text("path"), text("query"));
                format!("{path}?{query}&auth_signature={signature}")
            };
            let api = Api::new();
            let (method, body) = (text("method"), text("body"));
            let answer = api.send(method, &target(signature), body).await;
            let expected = match name {
                "R2" | "R4" | "R8" | "R10" => (200, r#"{"channels":{}}"#),
                "R3" => (
                    200,
                    r#"{"occupied":false,"user_count":0,"subscription_count":0}"#,
                ),
                "R5" => (200, r#"{"batch":[{},{"user_count":0}]}"#),
                "R7" => (202, ""),
                "R9" => (200, r#"{"occupied":false}"#),
                _ => (200, "{}"),
            };
            assert_eq!((answer.status, answer.body.as_str()), expected, "{name}");
            let spoiled = target(&signature.replace(['0', '1'], "2"));
            let answer = api.send(method, &spoiled, body).await;
            assert_eq!(answer.status, 401, "{name}");
            assert!(answer.body.starts_with("Invalid signature: "), "{name}");
        }
    }

    #[tokio::test]
    async fn who_is_not_an_enabled_app_is_refused() {
        let api = Api::new();
        let refused = async |target: &str, status, text: &str| {
            api.send("GET", target, "").await.is(status, text);
        };
        refused("/apps/9/channels", 404, "Unknown app\n").await;
        let unsigned = "Missing parameter: auth_key\n";
        refused("/apps/3/channels", 401, unsigned).await;
        refused("/apps/%33/channels?", 401, unsigned).await;
        let others = NEW_KEY.sign(NOW_SECS, "GET", "/apps/3/channels", "", "");
        refused(&others, 401, "Unknown auth_key\n").await;
        let disabled = DISABLED.target("GET", "/channels", "", "");
        refused(&disabled, 403, "App disabled\n").await;
        let old = APP.sign(NOW_SECS - 600, "GET", "/apps/3/channels", "", "");
        let expired = "Timestamp expired: Given timestamp (2012-11-16T17:39:39Z) not within 600s \
                       of server time (2012-11-16T17:49:39Z)\n";
        refused(&old, 401, expired).await;
        let disabled_and_unsigned = disabled.replace("auth_signature", "signature");
        let answer = api.send("GET", &disabled_and_unsigned, "").await;
        assert_eq!(answer.status, 401);
    }

    #[tokio::test]
    async fn each_key_of_an_app_signs_with_its_own_secret() {
        let api = Api::new();
        for signer in [OLD_KEY, NEW_KEY] {
            let target = signer.target("GET", "/channels", "", "");
            (api.send("GET", &target, "").await).is(200, r#"{"channels":{}}"#);
        }
        let mixed = Signer {
            secret: OLD_KEY.secret,
            ..NEW_KEY
        };
        let target = mixed.target("GET", "/channels", "", "");
        assert_eq!(api.send("GET", &target, "").await.status, 401);
    }

    #[tokio::test]
    async fn the_body_is_checked_after_everything_else() {
        let api = Api::new();
        let target = APP.target("POST", "/events", "", EVENT);
        (api.send("POST", &target, &EVENT.replace('x', "y")).await).is(401, "Invalid body_md5\n");
        let spoiled = target.replace("auth_version=1.0", "auth_version=2.0");
        (api.send("POST", &spoiled, "").await).is(401, "Version not supported\n");
    }

    #[tokio::test]
    async fn a_path_has_its_methods_and_says_so() {
        let api = Api::new();
        for (method, path, allowed) in [
            ("GET", "/events", "POST"),
            ("OPTIONS", "/events", "POST"),
            ("PUT", "/batch_events", "POST"),
            ("POST", "/channels", "GET, HEAD"),
            ("DELETE", "/channels/c", "GET, HEAD"),
            ("PURGE", "/channels/presence-c/users", "GET, HEAD"),
            ("HEAD", "/channels/c/events", "POST"),
            ("POST", "/channels/c/stats", "GET, HEAD"),
            ("GET", "/users/1/terminate_connections", "POST"),
        ] {
            let answer = api.call(method, path, "", "").await;
            assert_eq!(answer.status, 405, "{method} {path}");
            assert_eq!(answer.headers[ALLOW], allowed, "{method} {path}");
            assert_eq!(answer.body, "Method not allowed\n");
        }
        assert_eq!(api.call("HEAD", "/channels", "", "").await.status, 200);
        let signed_as_get = APP.target("GET", "/channels", "", "");
        assert_eq!(api.send("HEAD", &signed_as_get, "").await.status, 401);
    }

    #[tokio::test]
    async fn only_the_paths_of_the_api_are_served() {
        let api = Api::new();
        for path in [
            "",
            "/nope",
            "/channels/c/nope",
            "/channels/c/users/more",
            "/channels//",
            "/channels//users",
            "//channels",
            "/users/1",
        ] {
            assert_eq!(api.get(path, "").await.status, 404, "{path}");
        }
    }

    #[tokio::test]
    async fn one_slash_at_the_end_is_passed_over_and_signed() {
        let api = Api::new();
        (api.get("/channels/", "").await).is(200, r#"{"channels":{}}"#);
        (api.get("/channels/c/", "").await).is(200, r#"{"occupied":false}"#);
        (api.post("/events/", EVENT).await).is(200, "{}");
        let signed_without = APP.target("GET", "/channels", "", "");
        let sent_with = signed_without.replace("channels", "channels/");
        assert_eq!(api.send("GET", &sent_with, "").await.status, 401);
    }

    #[tokio::test]
    async fn names_in_the_path_may_be_escaped_and_signed_either_way() {
        let api = Api::new();
        let listener = api.listen("me", &["a;b,c=d"]).await;
        let plain = "/channels/a;b,c=d";
        let escaped = "/channels/a%3Bb%2Cc%3Dd";
        for path in [plain, escaped] {
            (api.get(path, "").await).is(200, r#"{"occupied":true}"#);
        }
        let signed_plain = APP.target("GET", plain, "", "");
        let sent = signed_plain.replace(plain, escaped);
        (api.send("GET", &sent, "").await).is(200, r#"{"occupied":true}"#);
        drop(listener);
    }

    /// A request whose body comes in these pieces.
    fn in_chunks<S>(target: &str, chunks: S) -> http::Request<StreamBody<S>>
    where
        S: Stream<Item = Result<Frame<Bytes>, std::io::Error>>,
    {
        let request = http::Request::builder().method("POST").uri(target);
        request.body(StreamBody::new(chunks)).unwrap()
    }

    fn chunk(bytes: &[u8]) -> Result<Frame<Bytes>, std::io::Error> {
        Ok(Frame::data(Bytes::copy_from_slice(bytes)))
    }

    #[tokio::test]
    async fn a_body_may_come_in_pieces_up_to_its_limit() {
        let api = Api::new();
        let pieces = |body: &str| {
            let pieces: Vec<_> = body.as_bytes().chunks(7).map(chunk).collect();
            stream::iter(pieces)
        };
        for (length, status, text) in [
            (EVENT.len(), 200, "{}"),
            (BODY_BYTES_MAX, 200, "{}"),
            (BODY_BYTES_MAX + 1, 413, "Request body too large\n"),
            (3 * BODY_BYTES_MAX, 413, "Request body too large\n"),
        ] {
            let body = EVENT.to_owned() + &" ".repeat(length - EVENT.len());
            let target = APP.target("POST", "/events", "", &body);
            let request = in_chunks(&target, pieces(&body));
            api.serve(request).await.is(status, text);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_without_end_is_not_received_for_ever() {
        let api = Api::new();
        let target = APP.target("POST", "/events", "", EVENT);
        let endless = stream::repeat_with(|| chunk(&[b' '; 65_536]));
        let request = in_chunks(&target, endless);
        (api.serve(request).await).is(413, "Request body too large\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_coming_is_given_up() {
        let api = Api::new();
        let target = APP.target("POST", "/events", "", EVENT);
        let stuck = stream::iter([chunk(b"{")]).chain(stream::pending());
        (api.serve(in_chunks(&target, stuck)).await).is(408, "Request body took too long\n");
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_publishes_nothing() {
        let api = Api::new();
        let listener = api.listen("me", &["c"]).await;
        let target = APP.target("POST", "/events", "", EVENT);
        let broken = Err(std::io::ErrorKind::UnexpectedEof.into());
        let pieces = stream::iter([chunk(EVENT.as_bytes()), broken]);
        (api.serve(in_chunks(&target, pieces)).await).is(400, "Request body cut off\n");
        assert!(listener.received().is_empty());
    }
}
