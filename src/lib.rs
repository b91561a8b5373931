//! Raptor: hosted Pusher Channels and Faye (Bayeux) from one binary, on one set of channels.

#![forbid(unsafe_code)]

pub mod backend;
pub mod hub;
pub mod model;
pub mod wire;
