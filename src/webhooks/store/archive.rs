//! What became of deliveries, beside running servers or after them.

use std::path::Path;

use super::local;
use super::shared;
use super::{Attempt, Delivery, State, StoreError};
use crate::backend::redis;

/// The deliveries of a server or of a cluster.
pub enum Archive {
    /// In a directory.
    Local(local::Archive),
    /// In Redis.
    Shared(shared::Archive),
}

/// A delivery as lists show it.
#[derive(Clone, PartialEq, Debug)]
pub struct Listed {
    pub delivery: Delivery,
    pub app: String,
    pub endpoint_name: String,
    pub attempts: Vec<Attempt>,
}

impl Archive {
    /// Never makes a store where none is.
    pub fn in_directory(dir: &Path) -> Result<Self, StoreError> {
        local::Archive::open(dir).map(Self::Local)
    }

    pub async fn in_redis(settings: &redis::Settings) -> Result<Self, StoreError> {
        shared::Archive::open(settings).await.map(Self::Shared)
    }

    /// The newest deliveries, newest first, of one state or of all.
    pub async fn list(
        &self,
        state: Option<State>,
        deliveries_max: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        match self {
            Self::Local(archive) => archive.list(state, deliveries_max),
            Self::Shared(archive) => archive.list(state, deliveries_max).await,
        }
    }

    pub async fn find(&self, id: &str) -> Result<Option<Listed>, StoreError> {
        match self {
            Self::Local(archive) => archive.find(id),
            Self::Shared(archive) => archive.find(id).await,
        }
    }

    /// Asks the server to send the delivery again. `false` if it is not there, not over, or its
    /// body was not kept.
    pub async fn replay(&self, id: &str) -> Result<bool, StoreError> {
        match self {
            Self::Local(archive) => archive.replay(id),
            Self::Shared(archive) => archive.replay(id).await,
        }
    }

    /// The same for every dead letter; how many there are.
    pub async fn replay_dead(&self) -> Result<usize, StoreError> {
        match self {
            Self::Local(archive) => archive.replay_dead(),
            Self::Shared(archive) => archive.replay_dead().await,
        }
    }
}
