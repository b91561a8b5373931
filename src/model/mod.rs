//! The nouns of the system. Nothing here knows JSON shapes, IO or an async runtime.

mod clock;
pub mod event;
pub mod fact;
pub mod ids;
pub mod name;

pub use clock::{now_ms, since_1970};
pub use event::{Body, Event, Member, Message};
pub use fact::{ChannelFact, Fact, FactKind, SessionFact, SessionFactKind};
pub use ids::{AppId, EventId, SocketId, UserId};
pub use name::{ChannelId, ChannelKind, ChannelName, InvalidName};
