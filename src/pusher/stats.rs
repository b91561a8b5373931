//! What pusher-js reports of itself where its statistics are switched on (`pusher.md` 7.8). It is
//! answered, so that it goes nowhere else, counted, and forgotten.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use warp::http::StatusCode;
use warp::http::header::{CONTENT_TYPE, HeaderValue};
use warp::reply::Response;

use super::http::JAVASCRIPT;
use crate::transport::http::{json, text};

/// Further versions are counted as one. Everybody can make some up.
const VERSIONS_MAX: usize = 64;
const VERSION_CHARS_MAX: usize = 32;
const OTHER: &str = "other";

/// How a report comes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ReportTransport {
    /// A script, from pages.
    Jsonp,
    /// From Node, workers and React Native.
    Xhr,
}

impl ReportTransport {
    pub fn name(self) -> &'static str {
        match self {
            Self::Jsonp => "jsonp",
            Self::Xhr => "xhr",
        }
    }
}

/// Reports by transport and version of pusher-js.
#[derive(Default)]
pub struct Stats(Mutex<BTreeMap<(ReportTransport, String), u64>>);

impl Stats {
    pub fn counts(&self) -> Vec<((ReportTransport, String), u64)> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts
            .iter()
            .map(|(of, count)| (of.clone(), *count))
            .collect()
    }

    fn count(&self, transport: ReportTransport, version: Option<String>) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut of = (transport, version.unwrap_or_else(|| OTHER.to_owned()));
        if !counts.contains_key(&of) && counts.len() >= VERSIONS_MAX {
            of.1 = OTHER.to_owned();
        }
        *counts.entry(of).or_default() += 1;
    }

    /// `receiver`: the last segment of the path, which a script has to call.
    pub fn answer(&self, transport: ReportTransport, receiver: &str, query: &str) -> Response {
        let is_number = !receiver.is_empty() && receiver.bytes().all(|b| b.is_ascii_digit());
        if !is_number || receiver.len() > 10 {
            return text(StatusCode::NOT_FOUND, "NOT FOUND");
        }
        self.count(transport, version(query));
        match transport {
            ReportTransport::Jsonp => {
                let script = format!("Pusher.ScriptReceivers[{receiver}](null, {{}});");
                let mut response = Response::new(script.into());
                let javascript = HeaderValue::from_static(JAVASCRIPT);
                response.headers_mut().insert(CONTENT_TYPE, javascript);
                response
            }
            ReportTransport::Xhr => json("{}".to_owned()),
        }
    }
}

/// Every value of a report is in base64.
fn version(query: &str) -> Option<String> {
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    let (_, given) = pairs.find(|(name, _)| name == "version")?;
    let version = String::from_utf8(STANDARD.decode(given.as_bytes()).ok()?).ok()?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_+ ".contains(&byte);
    let is_version = !version.is_empty() && version.len() <= VERSION_CHARS_MAX;
    (is_version && version.bytes().all(is_plain)).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_counted_by_transport_and_version() {
        let stats = Stats::default();
        let report = |transport, query: &str| stats.answer(transport, "1", query).status();
        for (transport, query) in [
            (
                ReportTransport::Jsonp,
                "session=MQ%3D%3D&version=OC42LjA%3D",
            ),
            (ReportTransport::Jsonp, "version=OC42LjA%3D"),
            (ReportTransport::Xhr, "version=OC42LjA%3D"),
            (ReportTransport::Xhr, "version=%22"),
            (ReportTransport::Xhr, ""),
        ] {
            assert_eq!(report(transport, query), StatusCode::OK);
        }
        let counts = stats.counts();
        let counts = counts.iter().map(|((t, v), n)| (t.name(), v.as_str(), *n));
        let counts: Vec<_> = counts.collect();
        let expected = [
            ("jsonp", "8.6.0", 2),
            ("xhr", "8.6.0", 1),
            ("xhr", "other", 2),
        ];
        assert_eq!(counts, expected);
    }

    #[test]
    fn made_up_versions_and_receivers_cost_nothing() {
        let stats = Stats::default();
        for n in 0..1000 {
            let version = STANDARD.encode(format!("{n}"));
            stats.answer(ReportTransport::Xhr, "2", &format!("version={version}"));
        }
        assert_eq!(stats.counts().len(), VERSIONS_MAX + 1);
        for receiver in ["", "a", "1]", "-1", "12345678901"] {
            let refused = stats.answer(ReportTransport::Jsonp, receiver, "");
            assert_eq!(refused.status(), StatusCode::NOT_FOUND);
        }
    }
}
