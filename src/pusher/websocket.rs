//! WebSocket connections of Pusher clients. A refused one is upgraded first and then closed:
//! clients see only the close code, and come back for ever on a refused upgrade (`pusher.md` 0,
//! rule 5).

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use warp::http::HeaderMap;
use warp::http::header::ORIGIN;
use warp::reply::Response;

use super::Front;
use super::close::{self, close};
use super::connection::Connection;
use super::encoding::WEBSOCKET;
use super::handshake;
use crate::audit;
use crate::auth::percent_decode;
use crate::hub::Outbox;
use crate::transport::peer::Peer;
use crate::transport::websocket::{Close, Upgrade};

/// `/app/:key`, the key as it stands in the path.
pub fn app_path(
    front: Arc<Front>,
    key: &str,
    query: &str,
    headers: &HeaderMap,
    peer: Peer,
    on_upgrade: Option<OnUpgrade>,
) -> Response {
    let key = percent_decode(key).into_owned();
    let checked = handshake::check(&front, &key, query, headers.get(ORIGIN), peer);
    upgrade(front, headers, on_upgrade, move |front, outbox| {
        let opened = checked.and_then(|app| Connection::open(front, app, outbox, &WEBSOCKET));
        audited(&key, peer, opened)
    })
}

/// Writes down who came, or who was turned away and why.
pub fn audited(
    key: &str,
    peer: Peer,
    opened: Result<Connection, Close>,
) -> Result<Connection, Close> {
    match &opened {
        Ok(connection) => {
            let (app, socket_id) = connection.id();
            audit::connected(app, socket_id, peer.address);
        }
        Err(close) => {
            let (unknown, _) = close::UNKNOWN_APP;
            let stranger = audit::Stranger {
                app: None,
                key: (close.code != unknown).then_some(key),
                address: Some(peer.address),
            };
            stranger.refused(&close.reason);
        }
    }
    opened
}

/// Every path that is nobody's.
pub fn any_path(front: Arc<Front>, headers: &HeaderMap, on_upgrade: Option<OnUpgrade>) -> Response {
    upgrade(front, headers, on_upgrade, |_, _| {
        Err(close(close::PATH_NOT_FOUND))
    })
}

/// Any path, for an address that has as many connections as it may have.
pub fn too_many(front: Arc<Front>, headers: &HeaderMap, on_upgrade: Option<OnUpgrade>) -> Response {
    upgrade(front, headers, on_upgrade, |_, _| {
        Err(close(close::TOO_MANY_OF_ADDRESS))
    })
}

fn upgrade(
    front: Arc<Front>,
    headers: &HeaderMap,
    on_upgrade: Option<OnUpgrade>,
    open: impl FnOnce(Arc<Front>, Arc<Outbox>) -> Result<Connection, Close> + Send + 'static,
) -> Response {
    let upgrade = match Upgrade::accept(headers, on_upgrade) {
        Ok(upgrade) => upgrade,
        Err(refusal) => return *refusal,
    };
    let outbox = Arc::new(Outbox::new(front.outbox_bytes_max));
    let settings = front.websocket.clone();
    upgrade.serve(settings, move || {
        open(front, outbox)
            .inspect_err(|close| tracing::debug!(code = close.code, "connection refused"))
    })
}
