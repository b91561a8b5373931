//! Raptor: hosted Pusher Channels and Faye (Bayeux) from one binary, on one set of channels.

#![forbid(unsafe_code)]

pub mod apps;
pub mod auth;
pub mod config;
pub mod model;
