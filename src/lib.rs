//! Raptor: hosted Pusher Channels and Faye (Bayeux) from one binary, on one set of channels.

#![forbid(unsafe_code)]

pub mod config;
pub mod server;

pub mod pusher;
pub mod rest;

pub mod broker;

pub mod backend;

pub mod transport;

pub mod hub;

pub mod apps;
pub mod auth;
pub mod wire;

pub mod model;
