//! Signed-in users (`pusher.md` 4). A user is online while a connection is subscribed to the
//! user's internal signed-in channel; whoever watches the user subscribes to another one.

use super::Broker;
use crate::apps::App;
use crate::backend::Joining;
use crate::hub::{Acknowledgement, Frame, Subscriber};
use crate::model::{Body, ChannelId, ChannelName, SocketId, UserId};

impl Broker {
    pub async fn sign_in(&self, app: &App, subscriber: Subscriber, user_id: &str) {
        self.attach(app, ChannelName::signed_in(user_id), subscriber.clone())
            .await
            .release(self);
    }

    pub async fn sign_out(&self, app: &App, who: SocketId, user_id: &str) {
        let channel = ChannelId::new(&app.id, &ChannelName::signed_in(user_id));
        self.backend.leave(&channel, who).await;
    }

    /// From now on the subscriber is told when one of the users comes or goes; first it gets
    /// what `introduce` makes of those `(online, offline)` now.
    pub async fn watch(
        &self,
        app: &App,
        subscriber: Subscriber,
        watchlist: &[UserId],
        introduce: impl FnOnce(&[UserId], &[UserId]) -> Option<Frame>,
    ) {
        let mut attached = Vec::with_capacity(watchlist.len());
        for user_id in watchlist {
            let channel = ChannelName::watchers(user_id);
            attached.push(self.attach(app, channel, subscriber.clone()).await);
        }
        let (mut online, mut offline) = (Vec::new(), Vec::new());
        for user_id in watchlist {
            let channel = ChannelId::new(&app.id, &ChannelName::signed_in(user_id));
            match self.backend.occupancy(&channel).await {
                Some(_) => online.push(user_id.clone()),
                None => offline.push(user_id.clone()),
            }
        }
        if let Some(frame) = introduce(&online, &offline) {
            subscriber.outbox.push(frame);
        }
        // Changes since attaching were held back until here.
        for attachment in attached {
            attachment.release(self);
        }
    }

    pub async fn unwatch(&self, app: &App, who: SocketId, watchlist: &[UserId]) {
        for user_id in watchlist {
            let channel = ChannelId::new(&app.id, &ChannelName::watchers(user_id));
            self.backend.leave(&channel, who).await;
        }
    }

    /// Closes every connection that is signed in as the user.
    pub async fn terminate_user(&self, app: &App, user_id: &str) {
        let channel = ChannelName::signed_in(user_id);
        let event = self.event(app, &channel, None, Body::Terminate);
        self.backend.publish(event, None, None).await;
    }

    async fn attach(&self, app: &App, name: ChannelName, subscriber: Subscriber) -> Attachment {
        let channel = ChannelId::new(&app.id, &name);
        let who = subscriber.id;
        let joining = Joining {
            subscriber,
            member: None,
            members_max: usize::MAX,
        };
        // Only members are limited, and there is none.
        let _ = self.backend.join(&channel, joining).await;
        Attachment { channel, who }
    }
}

/// A subscription to an internal channel whose events are still held back.
struct Attachment {
    channel: ChannelId,
    who: SocketId,
}

impl Attachment {
    fn release(self, broker: &Broker) {
        (broker.hub).acknowledge(&self.channel, self.who, Acknowledgement::default(), 0);
    }
}
