//! Subscribers to many channels at once (`bayeux.md` 1.3, 8.4): an index by pattern, beside the
//! table of channels.
//!
//! What a pattern means is the front end's business. Here it is a text, and a channel is looked up
//! under the few texts that an [`Expansion`] makes of its name; so a delivery costs the same
//! however many other patterns there are, and nothing where an app has none.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::Subscriber;
use super::audience::Audience;
use crate::model::{AppId, ChannelId, ChannelName, SocketId};

/// The texts of all patterns of an app that match a channel.
pub type Expansion = Arc<dyn Fn(&ChannelName) -> Vec<String> + Send + Sync>;

#[derive(Default)]
pub struct Patterns {
    /// How many apps have pattern subscribers, so that most deliveries need no lock to know that
    /// theirs has none.
    apps: AtomicUsize,
    by_app: RwLock<HashMap<AppId, AppPatterns>>,
}

struct AppPatterns {
    expansion: Expansion,
    by_text: HashMap<String, Listeners>,
}

/// The subscribers of one pattern: at least one.
#[derive(Default)]
struct Listeners {
    subscribers: HashMap<SocketId, Subscriber>,
    /// Made when first needed, cleared by every change of who is subscribed.
    audience: OnceLock<Arc<Audience>>,
}

impl Listeners {
    fn audience(&self) -> Arc<Audience> {
        let make = || Arc::new(Audience::of(self.subscribers.values()));
        self.audience.get_or_init(make).clone()
    }
}

impl Patterns {
    /// `expansion` is the app's, the same for all its patterns.
    pub fn join(&self, app: &AppId, pattern: &str, expansion: Expansion, subscriber: Subscriber) {
        let mut by_app = self.write();
        let patterns = by_app.entry(app.clone()).or_insert_with(|| AppPatterns {
            expansion,
            by_text: HashMap::new(),
        });
        let listeners = patterns.by_text.entry(pattern.to_owned()).or_default();
        listeners.subscribers.insert(subscriber.id, subscriber);
        listeners.audience = OnceLock::new();
        self.apps.store(by_app.len(), Ordering::Release);
    }

    /// Whether it was subscribed.
    pub fn leave(&self, app: &AppId, pattern: &str, who: SocketId) -> bool {
        let mut by_app = self.write();
        let Some(patterns) = by_app.get_mut(app) else {
            return false;
        };
        let Some(listeners) = patterns.by_text.get_mut(pattern) else {
            return false;
        };
        let left = listeners.subscribers.remove(&who).is_some();
        listeners.audience = OnceLock::new();
        if listeners.subscribers.is_empty() {
            patterns.by_text.remove(pattern);
        }
        if patterns.by_text.is_empty() {
            by_app.remove(app);
        }
        self.apps.store(by_app.len(), Ordering::Release);
        left
    }

    /// Whether any channel of the app has to be looked up at all.
    pub fn has_any(&self, app: &AppId) -> bool {
        self.apps.load(Ordering::Acquire) > 0 && self.read().contains_key(app)
    }

    /// The subscribers of each pattern that matches the channel.
    pub fn audiences(&self, channel: &ChannelId) -> Vec<Arc<Audience>> {
        let Some(expansion) = self.read().get(&channel.app).map(|p| p.expansion.clone()) else {
            return Vec::new();
        };
        let texts = expansion(&channel.name);
        let by_app = self.read();
        let Some(patterns) = by_app.get(&channel.app) else {
            return Vec::new();
        };
        let listeners = texts.iter().filter_map(|text| patterns.by_text.get(text));
        listeners.map(Listeners::audience).collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<AppId, AppPatterns>> {
        self.by_app.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<AppId, AppPatterns>> {
        self.by_app.write().unwrap_or_else(PoisonError::into_inner)
    }
}
