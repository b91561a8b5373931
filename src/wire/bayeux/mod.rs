//! The Bayeux protocol as text (`bayeux.md` 2, 3, 8.5), as Faye 1.4 speaks it.
//!
//! Nothing here knows which channel names are legal or who may use them: that is
//! [`crate::bayeux`]. A message borrows from the text of its request.

mod advice;
mod error;
mod given;
pub mod http;
mod incoming;
mod object;
pub mod payload;
mod reply;

pub use advice::{Advice, ConnectionType, Reconnect};
pub use error::*;
pub use given::{Ext, Given, NESTING_LEVELS_MAX};
pub use incoming::{
    Connect, Disconnect, Handshake, IncomingMessage, Invalid, Publish, Subscribe, Subscription,
    Unreadable, parse, parse_all,
};
pub use object::{Object, join};
pub use reply::{Delivery, HeldConnect};
