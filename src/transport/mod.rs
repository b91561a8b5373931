//! How bytes reach peers, whatever protocol they speak.

pub mod http;
pub mod outbound;
pub mod peer;
pub mod receipt;
pub mod session;
pub mod socket;
pub mod stream;
pub mod websocket;
pub mod writer;
