//! The files that a Faye server serves (`bayeux.md` 4): its browser client, built in.

use std::sync::LazyLock;

use sha1::{Digest, Sha1};
use warp::http::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH,
};
use warp::http::{HeaderMap, StatusCode};
use warp::reply::Response;

struct File {
    content: &'static [u8],
    content_type: &'static str,
    /// SHA-1 of the content, in quotes.
    etag: String,
}

macro_rules! file {
    ($name:literal, $content_type:literal) => {
        LazyLock::new(|| {
            File::new(
                include_bytes!(concat!("../../js-clients/faye/", $name)),
                $content_type,
            )
        })
    };
}

static SCRIPT: LazyLock<File> = file!("faye-browser.js", "text/javascript; charset=utf-8");
static SCRIPT_MIN: LazyLock<File> = file!("faye-browser-min.js", "text/javascript; charset=utf-8");
static MAP: LazyLock<File> = file!("faye-browser.js.map", "application/json; charset=utf-8");
static MAP_MIN: LazyLock<File> =
    file!("faye-browser-min.js.map", "application/json; charset=utf-8");

/// Only the last part of the path counts; the mount itself with `.js` is the client too.
pub fn answer(below: &str, headers: &HeaderMap) -> Response {
    let file = match below.rsplit('/').next() {
        Some(".js" | "client.js" | "faye-browser-min.js") => &*SCRIPT_MIN,
        Some("faye-browser.js") => &*SCRIPT,
        Some("faye-browser-min.js.map") => &*MAP_MIN,
        Some("faye-browser.js.map") => &*MAP,
        _ => {
            let mut response = Response::default();
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        }
    };
    let mut response = match file.is_known_to(headers) {
        true => {
            let mut response = Response::default();
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        }
        false => Response::new(file.content.into()),
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(file.content_type));
    let revalidated = HeaderValue::from_static("public, max-age=0, must-revalidate");
    headers.insert(CACHE_CONTROL, revalidated);
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    if let Ok(etag) = HeaderValue::from_str(&file.etag) {
        headers.insert(ETAG, etag);
    }
    response
}

impl File {
    fn new(content: &'static [u8], content_type: &'static str) -> Self {
        Self {
            content,
            content_type,
            etag: format!("\"{:x}\"", Sha1::digest(content)),
        }
    }

    /// Quoted, weak, or raw as Faye writes it.
    fn is_known_to(&self, headers: &HeaderMap) -> bool {
        let known = headers.get_all(IF_NONE_MATCH).iter();
        let mut tags = known.flat_map(|given| given.to_str().unwrap_or_default().split(','));
        tags.any(|tag| {
            let tag = tag.trim();
            tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"') == self.etag.trim_matches('"')
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(below: &str, tag: Option<&str>) -> Response {
        let mut headers = HeaderMap::new();
        if let Some(tag) = tag {
            headers.insert(IF_NONE_MATCH, HeaderValue::from_str(tag).unwrap());
        }
        answer(below, &headers)
    }

    #[test]
    fn the_client_is_found_under_all_its_names() {
        for (below, file) in [
            (".js", &SCRIPT_MIN),
            ("/client.js", &SCRIPT_MIN),
            ("/a/b/client.js", &SCRIPT_MIN),
            ("/faye-browser-min.js", &SCRIPT_MIN),
            ("/faye-browser.js", &SCRIPT),
            ("/faye-browser-min.js.map", &MAP_MIN),
            ("/faye-browser.js.map", &MAP),
        ] {
            let found = get(below, None);
            assert_eq!(found.status(), 200, "{below}");
            assert_eq!(found.headers()[ETAG], file.etag.as_str(), "{below}");
            assert_eq!(found.headers()[CONTENT_TYPE], file.content_type);
        }
        for below in ["/other.js", "/x.map", "/client.js/x.js"] {
            assert_eq!(get(below, None).status(), 404, "{below}");
        }
    }

    #[test]
    fn a_client_that_is_known_is_not_sent_again() {
        let tag = get(".js", None).headers()[ETAG]
            .to_str()
            .unwrap()
            .to_owned();
        let raw = tag.trim_matches('"');
        for known in [&tag, raw, &format!("W/{tag}"), &format!("\"x\", {tag}")] {
            let answer = get(".js", Some(known));
            assert_eq!(answer.status(), 304, "{known}");
            assert_eq!(answer.headers()[ETAG], tag.as_str());
        }
        assert_eq!(get(".js", Some("\"x\"")).status(), 200);
    }
}
