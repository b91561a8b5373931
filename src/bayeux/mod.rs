//! The Bayeux front end (`bayeux.md`): what is behind an app's mounts, for unmodified Faye and
//! CometD clients.
//!
//! A request or a socket's message comes in by `http`, `event_source` or `websocket` and is read by
//! [`crate::wire::bayeux`]. `exchange` answers its messages one by one: `handshake`, `connect`,
//! `subscribe`, `publish` and `service` hold what each may do. Whether a message is in order is
//! [`check`]'s, which channel a name is [`mapping`]'s, who may do what [`settings`]'s with
//! [`authorise`] and [`jwt`]; these know no sockets and no clock. What a session is subscribed to
//! is in `client`; its queue and its time are a [`crate::transport::session`].
//! Where an app has its own say, [`permission`] asks it. Where there are other nodes, `moving` knows
//! how a session goes there and comes from there.

pub mod authorise;
mod browsers;
pub mod channel;
pub mod check;
mod client;
mod connect;
mod encoding;
mod event_source;
mod exchange;
mod extensions;
mod files;
mod handshake;
mod http;
pub mod jwt;
pub mod mapping;
mod moving;
pub mod permission;
mod publish;
mod service;
pub mod settings;
mod site;
mod subscribe;
#[cfg(test)]
mod transcripts;
mod websocket;

pub use http::{TAKEN, answer, below_mount};
pub use settings::Settings;
pub use site::Front;
