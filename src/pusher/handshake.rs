//! Whether a client may connect (`pusher.md` 1.1, 1.2).

use std::sync::Arc;

use warp::http::header::HeaderValue;

use super::Front;
use super::close::{self, close};
use crate::apps::App;
use crate::metrics::{CUT_OFFS, CutOff};
use crate::transport::peer::Peer;
use crate::transport::websocket::Close;

/// Versions 1 to 3 are gone from hosted too; 4 is served as 5.
const PROTOCOLS: std::ops::RangeInclusive<u8> = 4..=7;

/// The app that the client asks for, or how it is turned away.
pub fn check(
    front: &Front,
    key: &str,
    query: &str,
    origin: Option<&HeaderValue>,
    peer: Peer,
) -> Result<Arc<App>, Close> {
    let app = enabled(front.apps.by_key(key))?;
    if app.features.force_tls && !peer.secure {
        CUT_OFFS.count(CutOff::NotOverTls);
        return Err(close(close::NOT_OVER_TLS));
    }
    check_protocol(query, front.assume_protocol)
        .inspect_err(|_| CUT_OFFS.count(CutOff::ProtocolVersion))?;
    let origin = origin.map(|o| o.to_str().unwrap_or_default());
    if !app.allows_origin(origin) {
        CUT_OFFS.count(CutOff::Origin);
        return Err(close(close::ORIGIN_NOT_ALLOWED));
    }
    Ok(app)
}

/// Only an app that is there and enabled has connections.
pub fn enabled(app: Option<Arc<App>>) -> Result<Arc<App>, Close> {
    let Some(app) = app else {
        CUT_OFFS.count(CutOff::UnknownApp);
        return Err(close(close::UNKNOWN_APP));
    };
    if !app.enabled {
        CUT_OFFS.count(CutOff::AppDisabled);
        return Err(close(close::APP_DISABLED));
    }
    Ok(app)
}

/// `client`, `version`, `flash` and whatever else stands in the query say nothing to us.
fn check_protocol(query: &str, assumed: Option<u8>) -> Result<(), Close> {
    let given = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "protocol");
    let version = match given {
        Some((_, version)) => version.parse().ok(),
        None => Some(assumed.ok_or(close(close::NO_PROTOCOL))?),
    };
    match version.is_some_and(|version| PROTOCOLS.contains(&version)) {
        true => Ok(()),
        false => Err(close(close::UNSUPPORTED_PROTOCOL)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_four_to_seven_are_served() {
        for (query, assumed, code) in [
            ("protocol=7&client=js&version=8.6.0&flash=false", None, None),
            ("client=dotnet&protocol=5", None, None),
            ("protocol=4", None, None),
            ("protocol=3", None, Some(4007)),
            ("protocol=8", None, Some(4007)),
            ("protocol=", None, Some(4007)),
            ("protocol=seven", Some(7), Some(4007)),
            ("protocol=-7", None, Some(4007)),
            ("", None, Some(4008)),
            ("version=8.6.0", Some(7), None),
        ] {
            let refused = check_protocol(query, assumed).err().map(|close| close.code);
            assert_eq!(refused, code, "{query:?}");
        }
    }
}
