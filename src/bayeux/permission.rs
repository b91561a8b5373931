//! The application decides itself (`bayeux.md` 5.1, `webhook`): it is asked by HTTP whether a client
//! may have a session, subscribe or publish.
//!
//! Asked: `POST {"channel", "clientId", "subscription", "ext", "headers"}` with the members that the
//! message has, signed as webhooks are (`X-Pusher-Key`, `X-Pusher-Signature`). Answered: status 200
//! and `{"allow": true}`, or `{"allow": false, "error": "text for the client"}`; 401 and 403 refuse
//! too. Any other answer, or none in time, is no decision: the message is refused, and what was
//! learnt is not kept.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode, Uri};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use warp::http::HeaderMap;
use warp::http::header::{CONTENT_TYPE, HeaderName};

use crate::apps::App;
use crate::transport::outbound::{Outbound, OutboundError, Reach};
use crate::wire::bayeux::{
    APPLICATION_UNREACHABLE, BayeuxError, Given, Object, REFUSED_BY_APPLICATION,
};

/// Whom to ask, and about what.
#[derive(Clone)]
pub struct PermissionWebhook {
    pub url: Uri,
    /// Which of a request's headers are shown.
    pub headers: Vec<HeaderName>,
    pub about: Vec<Matter>,
    pub timeout: Duration,
    /// How long a decision holds for the same question. Zero: it is asked every time.
    pub cache: Duration,
    pub allow_private_networks: bool,
}

/// The query of a URL may be a secret.
impl fmt::Debug for PermissionWebhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PermissionWebhook")
            .field("about", &self.about)
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Matter {
    Handshake,
    Subscribe,
    Publish,
}

impl PermissionWebhook {
    pub const TIMEOUT: Duration = Duration::from_secs(5);
}

/// What is asked about a message.
pub struct Question<'a> {
    pub matter: Matter,
    pub channel: &'a str,
    pub client_id: Option<Given<'a>>,
    /// JSON text, as it came.
    pub subscription: Option<&'a str>,
    /// JSON text of an object.
    pub ext: Option<&'a str>,
    pub headers: &'a ShownHeaders,
}

/// The text of a JSON object: names in lower case, of a repeated header the values as one.
#[derive(Clone, Default)]
pub struct ShownHeaders(Option<Arc<str>>);

/// Asks for one app.
pub struct Permission {
    webhook: PermissionWebhook,
    outbound: Outbound,
    asking: Semaphore,
    decisions: Mutex<Decisions>,
}

const ASKING_MAX: usize = 100;
const DECISIONS_MAX: usize = 10_000;
const ANSWER_BYTES_MAX: usize = 4_096;
const ERROR_CHARS_MAX: usize = 200;

/// Those that still hold, the oldest first: all hold equally long.
#[derive(Default)]
struct Decisions {
    by_question: HashMap<[u8; 32], Result<(), BayeuxError>>,
    ends: VecDeque<(Instant, [u8; 32])>,
}

impl Permission {
    pub fn new(webhook: PermissionWebhook) -> Result<Self, OutboundError> {
        let reach = match webhook.allow_private_networks {
            true => Reach::Everywhere,
            false => Reach::Public,
        };
        let https = webhook.url.scheme_str() == Some("https");
        Ok(Self {
            outbound: Outbound::new(reach, https)?,
            asking: Semaphore::new(ASKING_MAX),
            decisions: Mutex::default(),
            webhook,
        })
    }

    pub fn is_about(&self, matter: Matter) -> bool {
        self.webhook.about.contains(&matter)
    }

    pub fn shown(&self, headers: &HeaderMap) -> ShownHeaders {
        let mut shown = Object::default();
        for name in &self.webhook.headers {
            let values = headers.get_all(name).iter();
            let values: Vec<_> = values.filter_map(|value| value.to_str().ok()).collect();
            if !values.is_empty() {
                shown = shown.text(name.as_str(), &values.join(", "));
            }
        }
        ShownHeaders((!shown.is_empty()).then(|| shown.end().into()))
    }

    /// Asks, unless the answer is still known.
    pub async fn check(&self, app: &App, question: Question<'_>) -> Result<(), BayeuxError> {
        let text = question.text();
        let digest = Sha256::digest(&text).into();
        if let Some(decision) = self.decided(&digest) {
            return decision;
        }
        match self.ask(app, text).await {
            Some(decision) => {
                self.keep(digest, &decision);
                decision
            }
            None => Err(APPLICATION_UNREACHABLE.into()),
        }
    }

    async fn ask(&self, app: &App, text: String) -> Option<Result<(), BayeuxError>> {
        let asked = tokio::time::timeout(self.webhook.timeout, async {
            let _turn = self.asking.acquire().await.ok()?;
            let key = &app.keys[0];
            let request = Request::post(self.webhook.url.clone())
                .header(CONTENT_TYPE, "application/json")
                .header("X-Pusher-Key", &key.key)
                .header("X-Pusher-Signature", key.secret.sign(text.as_bytes()))
                .body(Full::new(Bytes::from(text)))
                .ok()?;
            let timeout = self.webhook.timeout;
            let exchange = self.outbound.exchange(request, timeout, ANSWER_BYTES_MAX);
            match exchange.await {
                Ok((status, body)) => decision(status, &body),
                Err(error) => {
                    tracing::warn!(app = %app.id, %error, "the permission webhook was not reached");
                    None
                }
            }
        });
        asked.await.ok().flatten()
    }

    fn decided(&self, question: &[u8; 32]) -> Option<Result<(), BayeuxError>> {
        let now = Instant::now();
        let mut decisions = self.decisions();
        decisions.forget(|ends, _| *ends <= now);
        decisions.by_question.get(question).cloned()
    }

    fn keep(&self, question: [u8; 32], decision: &Result<(), BayeuxError>) {
        if self.webhook.cache.is_zero() {
            return;
        }
        let ends = Instant::now() + self.webhook.cache;
        let mut decisions = self.decisions();
        // Asked twice at once: the first decision ends when it ends.
        if decisions.by_question.contains_key(&question) {
            return;
        }
        decisions.forget(|_, kept| kept >= DECISIONS_MAX);
        decisions.by_question.insert(question, decision.clone());
        decisions.ends.push_back((ends, question));
    }

    fn decisions(&self) -> MutexGuard<'_, Decisions> {
        self.decisions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Decisions {
    /// The oldest, as long as they are to go: told when one ends and how many there are.
    fn forget(&mut self, is_to_go: impl Fn(&Instant, usize) -> bool) {
        while let Some((ends, question)) = self.ends.front()
            && is_to_go(ends, self.ends.len())
        {
            self.by_question.remove(question);
            self.ends.pop_front();
        }
    }
}

impl Question<'_> {
    fn text(&self) -> String {
        let client_id = self.client_id.map(Given::json);
        Object::default()
            .text("channel", self.channel)
            .json_if_any("clientId", client_id)
            .json_if_any("subscription", self.subscription)
            .json_if_any("ext", self.ext)
            .json_if_any("headers", self.headers.0.as_deref())
            .end()
    }
}

fn decision(status: StatusCode, body: &[u8]) -> Option<Result<(), BayeuxError>> {
    #[derive(Deserialize)]
    struct Answer {
        allow: bool,
        error: Option<String>,
    }
    let refused = |error: Option<String>| match error.filter(|error| !error.is_empty()) {
        Some(text) => {
            let text: String = text.chars().take(ERROR_CHARS_MAX).collect();
            Err(BayeuxError::said_by_application(text))
        }
        None => Err(REFUSED_BY_APPLICATION.into()),
    };
    let answer = serde_json::from_slice::<Answer>(body).ok();
    match (status, answer) {
        (StatusCode::OK, Some(Answer { allow: true, .. })) => Some(Ok(())),
        (StatusCode::OK, Some(Answer { error, .. })) => Some(refused(error)),
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, answer) => {
            Some(refused(answer.and_then(|answer| answer.error)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_answer_is_a_decision() {
        let ok = StatusCode::OK;
        let told = |status, body: &str| {
            decision(status, body.as_bytes()).map(|decision| match decision {
                Ok(()) => "allowed".to_owned(),
                Err(error) => error.to_string(),
            })
        };
        for (status, body, expected) in [
            (ok, r#"{"allow":true}"#, Some("allowed")),
            (
                ok,
                r#"{"allow":true,"error":"x","more":1}"#,
                Some("allowed"),
            ),
            (
                ok,
                r#"{"allow":false}"#,
                Some("403::Refused by the application"),
            ),
            (
                ok,
                r#"{"allow":false,"error":""}"#,
                Some("403::Refused by the application"),
            ),
            (ok, r#"{"allow":false,"error":"Not you"}"#, Some("Not you")),
            (
                StatusCode::FORBIDDEN,
                "",
                Some("403::Refused by the application"),
            ),
            (
                StatusCode::UNAUTHORIZED,
                r#"{"allow":true}"#,
                Some("403::Refused by the application"),
            ),
            (ok, "", None),
            (ok, "true", None),
            (ok, r#"{"allow":"true"}"#, None),
            (StatusCode::CREATED, r#"{"allow":true}"#, None),
            (StatusCode::FOUND, r#"{"allow":true}"#, None),
            (StatusCode::NOT_FOUND, "", None),
            (StatusCode::INTERNAL_SERVER_ERROR, r#"{"allow":true}"#, None),
        ] {
            assert_eq!(told(status, body).as_deref(), expected, "{status} {body}");
        }
        let long = format!(r#"{{"allow":false,"error":"{}"}}"#, "ä".repeat(1000));
        assert_eq!(told(ok, &long), Some("ä".repeat(ERROR_CHARS_MAX)));
    }

    fn permission(cache: Duration) -> Permission {
        let webhook = PermissionWebhook {
            url: Uri::from_static("http://127.0.0.1:1/"),
            headers: vec![HeaderName::from_static("cookie")],
            about: vec![Matter::Publish],
            timeout: PermissionWebhook::TIMEOUT,
            cache,
            allow_private_networks: false,
        };
        Permission::new(webhook).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn decisions_hold_for_their_time_and_are_bounded_in_number() {
        const SECOND: Duration = Duration::from_secs(1);
        let permission = permission(10 * SECOND);
        let question = |n: usize| -> [u8; 32] { Sha256::digest(n.to_string()).into() };
        let is_kept = |n| permission.decided(&question(n)).is_some();
        permission.keep(question(1), &Ok(()));
        tokio::time::advance(9 * SECOND).await;
        permission.keep(question(1), &Ok(()));
        permission.keep(question(2), &Err(REFUSED_BY_APPLICATION.into()));
        assert!(is_kept(1) && is_kept(2) && !is_kept(3));
        tokio::time::advance(SECOND).await;
        assert!(!is_kept(1) && is_kept(2));
        for n in 10..10 + DECISIONS_MAX {
            permission.keep(question(n), &Ok(()));
        }
        assert!(!is_kept(2) && is_kept(10));
        tokio::time::advance(10 * SECOND).await;
        assert!(!is_kept(10));
        assert!(permission.decisions().by_question.is_empty());
    }

    #[test]
    fn only_headers_that_were_asked_for_are_shown() {
        let permission = permission(Duration::ZERO);
        let mut headers = HeaderMap::new();
        assert!(permission.shown(&headers).0.is_none());
        headers.append("cookie", "a=1".parse().unwrap());
        headers.append("cookie", "b=\"2\"".parse().unwrap());
        headers.append("authorization", "secret".parse().unwrap());
        let shown = permission.shown(&headers);
        assert_eq!(shown.0.as_deref(), Some(r#"{"cookie":"a=1, b=\"2\""}"#));
        let question = Question {
            matter: Matter::Subscribe,
            channel: "/meta/subscribe",
            client_id: Given::parse("\"c\""),
            subscription: Some("[\"/a\"]"),
            ext: None,
            headers: &shown,
        };
        assert_eq!(
            question.text(),
            r#"{"channel":"/meta/subscribe","clientId":"c","subscription":["/a"],"headers":{"cookie":"a=1, b=\"2\""}}"#
        );
    }
}
