use std::sync::Arc;

use bytes::Buf;
use hyper::body::Body;
use warp::http;
use warp::reply::Response;

use super::error::ApiError;
use super::request::Methods::{Get, Post};
use super::request::Request;
use super::{Front, channels, events, users};
use crate::transport::peer::Peer;

/// No path has more; whatever is longer is not looked at to its end.
const SEGMENTS_MAX: usize = 5;

impl Front {
    /// Answers a request, whatever its path. This is no table of warp's: a publish is the hottest
    /// request there is, and each line of such a table is a step on its way.
    pub async fn answer<B>(self: Arc<Self>, request: http::Request<B>, peer: Peer) -> Response
    where
        B: Body<Data: Buf>,
    {
        let outcome = route(self, request, peer).await;
        outcome.unwrap_or_else(ApiError::into_response)
    }
}

/// The URL table (`pusher.md` 5.1). A slash at the end of a path is passed over.
async fn route(
    front: Arc<Front>,
    request: http::Request<impl Body<Data: Buf>>,
    peer: Peer,
) -> Result<Response, ApiError> {
    let uri = request.uri().clone();
    let path = uri.path().strip_suffix('/').unwrap_or(uri.path());
    let segments = path.split('/').skip(1).take(SEGMENTS_MAX + 1);
    let segments: Vec<_> = segments.collect();
    if segments.contains(&"") {
        return Err(ApiError::UnknownPath);
    }
    let received = |methods| Request::receive(front, methods, request, peer);
    match *segments {
        ["apps", app, "events"] => events::publish(app, received(Post).await).await,
        ["apps", app, "batch_events"] => events::publish_batch(app, received(Post).await).await,
        ["apps", app, "channels"] => channels::list(app, received(Get).await).await,
        ["apps", app, "channels", channel] => {
            channels::show(app, channel, received(Get).await).await
        }
        ["apps", app, "channels", channel, "users"] => {
            users::list(app, channel, received(Get).await).await
        }
        ["apps", app, "users", user, "terminate_connections"] => {
            users::terminate(app, user, received(Post).await).await
        }
        // As Python's library sends it (`pusher.md` 4.3).
        ["users", user, "terminate_connections"] => {
            users::terminate_without_app(user, received(Post).await).await
        }
        // Deprecated (`pusher.md` 5.8).
        ["apps", app, "channels", channel, "events"] => {
            events::publish_to_one(app, channel, received(Post).await).await
        }
        ["apps", app, "channels", channel, "stats"] => {
            channels::stats(app, channel, received(Get).await).await
        }
        _ => Err(ApiError::UnknownPath),
    }
}
