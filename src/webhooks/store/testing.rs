//! Small events and deliveries for the tests of both stores.

use std::sync::Arc;

use bytes::Bytes;

use super::{Attempt, Delivery, EndpointId, Entry, State, Store};
use crate::model::{AppId, ChannelId, ChannelName};
use crate::webhooks::settle::{Subject, Told};

pub fn named(name: &str) -> (AppId, String) {
    (AppId::new("1"), name.to_owned())
}

pub fn occupied(channel: &str) -> Entry {
    let name = ChannelName::parse(channel, 200).unwrap();
    let app = AppId::new("1");
    let subject = Subject {
        channel: ChannelId::new(&app, &name),
        user_id: None,
    };
    Entry {
        app,
        channel: channel.into(),
        name: "channel_occupied",
        json: Some(format!("{{{channel}}}")),
        told: Some((subject, Told::Present)),
    }
}

pub async fn append(store: &impl Store, channels: &[&str]) {
    let entries = channels.iter().map(|channel| occupied(channel)).collect();
    store.append(Arc::new(entries), 5, vec![]).await.unwrap();
}

pub fn delivery(endpoint: EndpointId, id: &str, state: State, seqs: &[u64]) -> Delivery {
    Delivery {
        id: id.to_owned(),
        endpoint,
        state,
        created_ms: seqs[0],
        expires_ms: 9,
        seqs: seqs.to_vec(),
        channels: vec!["a".into(), "b\"".into()],
        key: "k".to_owned(),
        signature: "s".to_owned(),
        body: Some(Bytes::from("{}")),
        is_replay: false,
    }
}

pub fn attempt(status: u16) -> Attempt {
    Attempt {
        at_ms: 1,
        took_ms: 2,
        status: Some(status),
        error: None,
    }
}
