//! Text ↔ typed message, for each wire format. Pure: no sockets, no hub, no clock.

pub mod bayeux;
pub mod json;
pub mod proxy;
pub mod pusher;
pub mod rest;
pub mod sockjs;
pub mod webhooks;
pub mod websocket;
