//! Several sessions of one browser (`bayeux.md` 6): a browser has few connections to a server, and
//! polls that are held by many tabs leave none for anything else. Polls beyond a number are not
//! held; their clients come back after an interval.
//!
//! Browsers are told apart by a cookie. It proves nothing and is needed for nothing else: who sends
//! none is not counted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use warp::http::HeaderMap;
use warp::http::header::{COOKIE, HeaderValue};

use crate::transport::session::random_id;

const NAME: &str = "BAYEUX_BROWSER";
const ID_CHARS: usize = 16;

/// The browsers that have polls held, with the sessions that these are of and how many each has.
#[derive(Default)]
pub struct Browsers(Mutex<HashMap<BrowserId, HashMap<Arc<str>, usize>>>);

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct BrowserId(Box<str>);

impl BrowserId {
    /// As the browser was told; any other value is none.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let cookies = headers.get_all(COOKIE).iter();
        let mut cookies = cookies.flat_map(|c| c.to_str().unwrap_or_default().split(';'));
        let id = cookies.find_map(|cookie| cookie.trim().strip_prefix(NAME)?.strip_prefix('='))?;
        let is_ours = id.len() == ID_CHARS && id.bytes().all(|b| b.is_ascii_alphanumeric());
        is_ours.then(|| Self(id.into()))
    }

    /// A header that gives a browser its cookie. Only a secure one may be sent to us from a page of
    /// another site.
    pub fn introduce(secure: bool) -> Option<HeaderValue> {
        let id = random_id();
        let id = id.get(..ID_CHARS)?;
        let across_sites = if secure {
            "; Secure; SameSite=None"
        } else {
            ""
        };
        let cookie = format!("{NAME}={id}; Path=/; HttpOnly{across_sites}");
        HeaderValue::try_from(cookie).ok()
    }
}

impl Browsers {
    /// `None` if `sessions_max` other sessions of the browser have a poll held.
    pub fn hold(
        &self,
        browser: &BrowserId,
        session_id: &Arc<str>,
        sessions_max: usize,
    ) -> Option<Held<'_>> {
        let mut browsers = self.lock();
        let sessions = browsers.entry(browser.clone()).or_default();
        let others = sessions.len() - usize::from(sessions.contains_key(session_id));
        if others >= sessions_max {
            return None;
        }
        *sessions.entry(session_id.clone()).or_default() += 1;
        Some(Held {
            browsers: self,
            browser: browser.clone(),
            session_id: session_id.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BrowserId, HashMap<Arc<str>, usize>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A poll that counts until it is dropped.
pub struct Held<'b> {
    browsers: &'b Browsers,
    browser: BrowserId,
    session_id: Arc<str>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut browsers = self.browsers.lock();
        let Some(sessions) = browsers.get_mut(&self.browser) else {
            return;
        };
        if let Some(polls) = sessions.get_mut(&self.session_id) {
            *polls -= 1;
            if *polls == 0 {
                sessions.remove(&self.session_id);
            }
        }
        if sessions.is_empty() {
            browsers.remove(&self.browser);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn browser(cookie: &str) -> Option<BrowserId> {
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, cookie.parse().unwrap());
        BrowserId::of(&headers)
    }

    #[test]
    fn a_browser_is_known_by_the_cookie_that_it_was_given() {
        let cookie = BrowserId::introduce(false).unwrap();
        let cookie = cookie.to_str().unwrap();
        assert!(cookie.ends_with("; Path=/; HttpOnly"), "{cookie}");
        let (pair, _) = cookie.split_once(';').unwrap();
        let id = browser(&format!("a=b; {pair};c=d")).unwrap();
        assert_eq!(format!("{NAME}={}", id.0), pair);
        for other in [
            "",
            "BAYEUX_BROWSER=",
            "BAYEUX_BROWSER=short",
            "XBAYEUX_BROWSER=0123456789abcdef",
        ] {
            assert_eq!(browser(other), None, "{other}");
        }
    }

    #[test]
    fn sessions_are_counted_not_polls_and_nothing_is_left_of_them() {
        let browsers = Browsers::default();
        let one = browser("BAYEUX_BROWSER=0123456789abcdef").unwrap();
        let two = browser("BAYEUX_BROWSER=0123456789abcdeg").unwrap();
        let (a, b, c) = ("a".into(), "b".into(), "c".into());
        let first = browsers.hold(&one, &a, 2).unwrap();
        let second = browsers.hold(&one, &b, 2).unwrap();
        assert!(browsers.hold(&one, &c, 2).is_none());
        // Supersedes the first.
        let third = browsers.hold(&one, &a, 2).unwrap();
        drop(first);
        assert!(browsers.hold(&one, &c, 2).is_none());
        assert!(browsers.hold(&two, &c, 2).is_some());
        drop(third);
        assert!(browsers.hold(&one, &c, 2).is_some());
        drop(second);
        assert!(browsers.lock().is_empty());
    }
}
