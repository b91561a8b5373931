//! What pusher-js reports of itself where its statistics are switched on (`pusher.md` 7.8). It is
//! answered, so that it goes nowhere else, counted, and forgotten.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use warp::http::StatusCode;
use warp::http::header::{CONTENT_TYPE, HeaderValue};
use warp::reply::Response;

use super::http::{JAVASCRIPT, pair};
use crate::metrics::Page;
use crate::transport::http::{json, text};

/// Higher ones are made up.
const MAJOR_MAX: u8 = 20;

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

/// Reports by transport and major version of pusher-js, where it is one.
#[derive(Default)]
pub struct Stats(Mutex<BTreeMap<(ReportTransport, Option<u8>), u64>>);

impl Stats {
    pub fn show(&self, page: &mut Page) {
        let name = "raptor_pusher_js_reports_total";
        let help = "Reports of pusher-js about itself, by how they came and its major version.";
        page.family(name, "counter", help);
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for ((transport, major), count) in counts.iter() {
            let version = major.map_or("other".to_owned(), |major| major.to_string());
            let labels = [("transport", transport.name()), ("version", &*version)];
            page.sample(name, &labels, *count as f64);
        }
    }

    fn count(&self, transport: ReportTransport, major: Option<u8>) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((transport, major)).or_default() += 1;
    }

    /// `receiver`: the last segment of the path, which a script has to call.
    pub fn answer(&self, transport: ReportTransport, receiver: &str, query: &str) -> Response {
        let is_number = !receiver.is_empty() && receiver.bytes().all(|b| b.is_ascii_digit());
        if !is_number || receiver.len() > 10 {
            return text(StatusCode::NOT_FOUND, "NOT FOUND");
        }
        self.count(transport, major_version(query));
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
fn major_version(query: &str) -> Option<u8> {
    let given = pair(query, "version")?;
    let version = String::from_utf8(STANDARD.decode(given.as_bytes()).ok()?).ok()?;
    let (major, _) = version.split_once('.')?;
    let major: u8 = major.parse().ok()?;
    (1..=MAJOR_MAX).contains(&major).then_some(major)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(stats: &Stats) -> Vec<String> {
        let mut page = Page::default();
        stats.show(&mut page);
        let text = page.into_text();
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples.map(str::to_owned).collect()
    }

    fn version(text: &str) -> String {
        format!("session=MQ%3D%3D&version={}", STANDARD.encode(text))
    }

    #[test]
    fn reports_are_counted_by_transport_and_major_version() {
        let stats = Stats::default();
        for (transport, query) in [
            (ReportTransport::Jsonp, version("8.6.0")),
            (ReportTransport::Jsonp, version("8.4.0-rc2")),
            (ReportTransport::Xhr, version("4.4.0")),
            (ReportTransport::Xhr, "version=%22".to_owned()),
            (ReportTransport::Xhr, String::new()),
        ] {
            let answer = stats.answer(transport, "1", &query);
            assert_eq!(answer.status(), StatusCode::OK);
        }
        let name = "raptor_pusher_js_reports_total";
        let expected = [
            r#"{transport="jsonp",version="8"} 2"#,
            r#"{transport="xhr",version="other"} 2"#,
            r#"{transport="xhr",version="4"} 1"#,
        ];
        assert_eq!(
            shown(&stats),
            expected.map(|sample| format!("{name}{sample}"))
        );
    }

    #[test]
    fn made_up_versions_and_receivers_cost_nothing() {
        let stats = Stats::default();
        for n in 0..1000 {
            stats.answer(ReportTransport::Xhr, "2", &version(&format!("{n}.0.{n}")));
        }
        assert_eq!(shown(&stats).len(), usize::from(MAJOR_MAX) + 1);
        for receiver in ["", "a", "1]", "-1", "12345678901"] {
            let refused = stats.answer(ReportTransport::Jsonp, receiver, "");
            assert_eq!(refused.status(), StatusCode::NOT_FOUND);
        }
    }
}
