//! The state of channels (`pusher.md` 5.7, 5.8).

use warp::reply::Response;

use super::error::ApiError;
use super::request::{Call, Request};
use crate::backend::LastEvent;
use crate::hub::Occupancy;
use crate::model::{Body, ChannelName};
use crate::transport::http::json;
use crate::wire::rest::{self, Cached, ChannelInfo, Info};

/// `GET /apps/:app_id/channels`, optionally with `filter_by_prefix` and `info`. Answers with the
/// occupied channels.
pub async fn list(app_id: &str, request: Request) -> Result<Response, ApiError> {
    let call = request.of_app(app_id)?;
    let info = info(&call)?;
    let prefix = call.parameters.get("filter_by_prefix").unwrap_or_default();
    if info.cache {
        return Err(ApiError::UnknownAttribute);
    }
    if info.user_count && !prefix.starts_with("presence-") {
        return Err(ApiError::UserCountOfList);
    }
    let occupied = call.broker.channels(&call.app, prefix).await;
    let channels: Vec<_> = (occupied.into_iter())
        .map(|(name, occupancy)| {
            let counts = counts(info, &name, Some(&occupancy));
            (name, counts)
        })
        .collect();
    Ok(json(rest::channels(&channels)))
}

/// `GET /apps/:app_id/channels/:channel`, optionally with `info`. A channel that nobody has heard
/// of is an unoccupied one.
pub async fn show(app_id: &str, channel: &str, request: Request) -> Result<Response, ApiError> {
    let call = request.of_app(app_id)?;
    let channel = call.channel_in_path(channel)?;
    let info = info(&call)?;
    if info.user_count && !channel.is_presence() {
        return Err(ApiError::UserCountOfChannel);
    }
    if info.cache && !channel.is_cached() {
        return Err(ApiError::CacheOfChannel);
    }
    let mut state = state(&call, &channel, info).await;
    if info.cache {
        let last = call.broker.last_event(&call.app, &channel).await;
        state.cache = Some(last.and_then(cached));
    }
    Ok(json(state.to_json()))
}

/// `GET /apps/:app_id/channels/:channel/stats`
pub async fn stats(app_id: &str, channel: &str, request: Request) -> Result<Response, ApiError> {
    let call = request.of_app(app_id)?;
    let channel = call.channel_in_path(channel)?;
    let info = Info {
        user_count: true,
        ..Info::default()
    };
    Ok(json(state(&call, &channel, info).await.to_json()))
}

/// The counts that `info` names, as far as a channel of this kind has them.
pub(super) fn counts(
    info: Info,
    channel: &ChannelName,
    occupancy: Option<&Occupancy>,
) -> ChannelInfo {
    let users = occupancy.map_or(0, |occupancy| occupancy.users);
    let connections = occupancy.map_or(0, |occupancy| occupancy.connections);
    ChannelInfo {
        user_count: (info.user_count && channel.is_presence()).then_some(users),
        subscription_count: info.subscription_count.then_some(connections),
        ..ChannelInfo::default()
    }
}

async fn state(call: &Call, channel: &ChannelName, info: Info) -> ChannelInfo {
    let occupancy = call.broker.occupancy(&call.app, channel).await;
    ChannelInfo {
        occupied: Some(occupancy.is_some()),
        ..counts(info, channel, occupancy.as_ref())
    }
}

fn cached(last: LastEvent) -> Option<Cached> {
    let Body::Message(message) = last.event.body else {
        return None;
    };
    Some(Cached {
        data: message.data.to_string(),
        // As long as there is something it has a second to live.
        ttl: last.expires_in.as_millis().div_ceil(1000) as u64,
    })
}

fn info(call: &Call) -> Result<Info, ApiError> {
    let list = call.parameters.get("info").unwrap_or_default();
    Ok(Info::parse(list)?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::*;

    const UNKNOWN_ATTRIBUTE: &str = "info should be a comma separated list of attributes\n";
    const USER_COUNT_OF_LIST: &str = "user_count may only be requested for presence channels - \
        please supply filter_by_prefix begining with presence-\n";

    async fn check(api: &Api, cases: &[(&str, &str, u16, &str)]) {
        for (path, query, status, text) in cases {
            let answer = api.get(path, query).await;
            assert_eq!(answer.body, *text, "{path}?{query}");
            answer.is(*status, text);
        }
    }

    #[tokio::test]
    async fn the_list_holds_what_is_occupied_and_counts_when_asked() {
        let api = Api::new();
        (api.get("/channels", "").await).is(200, r#"{"channels":{}}"#);
        let channels = ["room", "presence-p", "#server-to-user-1", "private-x"];
        let _one = api.listen("same", &channels).await;
        let _two = api.listen("same", &["presence-p"]).await;
        let all = r#"{"channels":{"presence-p":{},"private-x":{},"room":{}}}"#;
        let presence = "filter_by_prefix=presence-";
        let none = r#"{"channels":{}}"#;
        check(
            &api,
            &[
                ("/channels", "", 200, all),
                ("/channels", "filter_by_prefix=&info=", 200, all),
                ("/channels", "filter_by_prefix=oom", 200, none),
                ("/channels", "filter_by_prefix=%23", 200, none),
                (
                    "/channels",
                    presence,
                    200,
                    r#"{"channels":{"presence-p":{}}}"#,
                ),
                (
                    "/channels",
                    &format!("{presence}&info=user_count"),
                    200,
                    r#"{"channels":{"presence-p":{"user_count":1}}}"#,
                ),
                (
                    "/channels",
                    "filter_by_prefix=r&info=subscription_count",
                    200,
                    r#"{"channels":{"room":{"subscription_count":1}}}"#,
                ),
                ("/channels", "info=user_count", 400, USER_COUNT_OF_LIST),
                (
                    "/channels",
                    "info=user_count&filter_by_prefix=presence",
                    400,
                    USER_COUNT_OF_LIST,
                ),
                ("/channels", "info=cache", 400, UNKNOWN_ATTRIBUTE),
                ("/channels", "info=nonsense", 400, UNKNOWN_ATTRIBUTE),
            ],
        )
        .await;
    }

    #[tokio::test]
    async fn apps_see_only_their_own_channels() {
        let api = Api::new();
        let _listener = api.listen("me", &["room"]).await;
        for (path, text) in [
            ("/channels", r#"{"channels":{}}"#),
            ("/channels/room", r#"{"occupied":false}"#),
        ] {
            let target = NEW_KEY.target("GET", path, "", "");
            api.send("GET", &target, "").await.is(200, text);
        }
    }

    #[tokio::test]
    async fn a_channel_is_occupied_or_not_and_has_what_was_asked_for() {
        let api = Api::new();
        let _one = api.listen("same", &["room", "presence-p"]).await;
        let _two = api.listen("same", &["presence-p"]).await;
        let counts = "info=user_count,subscription_count";
        let no_user_count =
            "Cannot retrieve the user count unless the channel is a presence channel\n";
        let no_cache = "Cannot retrieve the cache unless the channel is a cache channel\n";
        check(
            &api,
            &[
                ("/channels/room", "", 200, r#"{"occupied":true}"#),
                ("/channels/room", "info=", 200, r#"{"occupied":true}"#),
                ("/channels/nobody", "", 200, r#"{"occupied":false}"#),
                (
                    "/channels/room",
                    "info=subscription_count",
                    200,
                    r#"{"occupied":true,"subscription_count":1}"#,
                ),
                (
                    "/channels/presence-p",
                    counts,
                    200,
                    r#"{"occupied":true,"user_count":1,"subscription_count":2}"#,
                ),
                (
                    "/channels/presence-nobody",
                    counts,
                    200,
                    r#"{"occupied":false,"user_count":0,"subscription_count":0}"#,
                ),
                ("/channels/room", "info=user_count", 400, no_user_count),
                ("/channels/room", "info=cache", 400, no_cache),
                ("/channels/room", "info=nonsense", 400, UNKNOWN_ATTRIBUTE),
            ],
        )
        .await;
    }

    #[tokio::test]
    async fn a_name_that_is_none_is_refused() {
        let api = Api::new();
        let too_long = "x".repeat(165);
        for name in [
            "a%20b",
            "a%2Fb",
            "%23signed-in-1",
            "a%00b",
            "%ff",
            &too_long,
        ] {
            for end in ["", "/users", "/stats"] {
                let answer = api.get(&format!("/channels/{name}{end}"), "").await;
                assert_eq!(answer.status, 400, "{name}{end}");
                assert!(answer.body.starts_with("Invalid channel name "), "{name}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_cache_is_the_last_event_while_it_lives() {
        let api = Api::new();
        let state = async || api.get("/channels/cache-c", "info=cache").await;
        let empty = r#"{"occupied":false,"cache":null}"#;
        state().await.is(200, empty);
        let event = r#"{"name":"e","channel":"cache-c","data":"{\"n\": 1}"}"#;
        api.post("/events", event).await.is(200, "{}");
        let cached = r#"{"occupied":false,"cache":{"data":"{\"n\": 1}","ttl":1800}}"#;
        state().await.is(200, cached);
        tokio::time::advance(Duration::from_millis(1_799_500)).await;
        state().await.is(200, &cached.replace("1800", "1"));
        tokio::time::advance(Duration::from_millis(500)).await;
        state().await.is(200, empty);
    }

    #[tokio::test]
    async fn the_deprecated_statistics_count_users_of_presence_channels() {
        let api = Api::new();
        let _listener = api.listen("me", &["room", "presence-p"]).await;
        check(
            &api,
            &[
                ("/channels/room/stats", "", 200, r#"{"occupied":true}"#),
                ("/channels/nobody/stats", "", 200, r#"{"occupied":false}"#),
                (
                    "/channels/presence-p/stats",
                    "",
                    200,
                    r#"{"occupied":true,"user_count":1}"#,
                ),
            ],
        )
        .await;
    }
}
