//! The Pusher front end: what is behind `/app/:key`, over WebSockets and over HTTP.
//!
//! `handshake` decides whether a connection is accepted, `connection` what an accepted one may
//! do, `close` and `refusal` hold every code and text with which it is refused. `websocket`
//! carries it over a WebSocket. Over HTTP `http` has the URLs, `xhr` and `sockjs` what their requests
//! mean, `stream` the answers to them, `sessions` what is between requests, `inbox` their order, which
//! `numbers` tells;
//! `moving` is how sessions live on several nodes; `stats` is what pusher-js reports about itself.

pub mod close;
mod connection;
mod encoding;
mod handshake;
mod http;
mod inbox;
mod moving;
mod numbers;
mod refusal;
mod sessions;
mod sockjs;
pub mod stats;
mod stream;
mod websocket;
mod xhr;

use std::sync::Arc;
use std::time::Duration;

pub use encoding::WEBSOCKET;
pub use http::routes;
pub use sessions::{Fallback, Kept};
pub use websocket::{any_path, app_path, too_many};

use crate::apps::AppRegistry;
use crate::broker::Broker;
use crate::transport::websocket::Settings;

/// What every Pusher connection shares.
pub struct Front {
    pub broker: Arc<Broker>,
    pub apps: Arc<AppRegistry>,
    pub websocket: Arc<Settings>,
    /// Told to clients. They ping after so much silence.
    pub activity_timeout: Duration,
    /// The protocol version of a client that names none; without it such a client is refused.
    pub assume_protocol: Option<u8>,
    pub outbox_bytes_max: usize,
    pub http_sessions_max: usize,
}
