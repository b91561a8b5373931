//! The HTTP API of hosted Pusher (`pusher.md` 5), by which applications publish and ask.
//!
//! `routes` is the URL table. What it finds becomes a `Request`, the request of an app that is
//! known to have sent it becomes a `Call`, and a handler answers the call. `error` holds every
//! status and text with which one is refused.

mod channels;
mod error;
mod events;
mod request;
mod routes;
#[cfg(test)]
mod testing;
mod users;

use std::sync::Arc;

use error::ApiError;

use crate::apps::AppRegistry;
use crate::broker::Broker;
use crate::transport::http;

/// What every request shares.
pub struct Front {
    pub broker: Arc<Broker>,
    pub apps: Arc<AppRegistry>,
    pub request_body_bytes_max: usize,
    /// Whoever calls must have shown one over TLS, beside its signature.
    pub wants_client_certificate: bool,
    /// Seconds since 1970.
    pub clock: fn() -> u64,
}

/// Finishes the work even if the sender hangs up meanwhile and the request is dropped: an event
/// must not reach some of its subscribers only.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, ApiError> {
    http::to_the_end(work).await.ok_or(ApiError::Internal)
}
