//! Publishing. Everything is checked before the first event goes out.

use std::collections::HashSet;
use std::num::NonZeroUsize;

use warp::http::StatusCode;
use warp::reply::Response;

use super::channels::counts;
use super::error::ApiError;
use super::request::{Call, Request};
use super::to_the_end;
use crate::auth::Parameters;
use crate::metrics::{Limit, REFUSALS};
use crate::model::{ChannelName, Message, SocketId};
use crate::transport::http::json;
use crate::wire::rest::{self, Batch, ChannelInfo, Info, Trigger};

/// `POST /apps/:app_id/events` with `name`, `data`, `channels` or `channel`, and optionally
/// `socket_id` and `info`. Answers with what `info` names of each channel (`pusher.md` 5.5).
pub async fn publish(app_id: &str, request: Request) -> Result<Response, ApiError> {
    let call = request.of_app(app_id)?;
    let mut event = completed(Trigger::parse(&call.body)?, &call.parameters);
    let channels = (event.channels.take())
        .or_else(|| event.channel.take().map(|one| vec![one]))
        .unwrap_or_default();
    let publication = Publication::new(&call, event, channels)?;
    check_rate(&call, [&publication])?;
    let answer = async move {
        publication.publish(&call).await;
        if publication.info.is_none() {
            return "{}".to_owned();
        }
        let infos = publication.infos(&call).await;
        let channels: Vec<_> = publication.channels.into_iter().zip(infos).collect();
        rest::channels(&channels)
    };
    Ok(json(to_the_end(answer).await?))
}

/// `POST /apps/:app_id/batch_events` with `batch`, a list of events that each have `name`, `data`
/// and `channel`, and optionally `socket_id` and `info`. They go out in their order. If one has
/// `info`, the answer has an entry for each (`pusher.md` 5.6).
pub async fn publish_batch(app_id: &str, request: Request) -> Result<Response, ApiError> {
    let call = request.of_app(app_id)?;
    let batch = Batch::parse(&call.body)?;
    if batch.is_empty() {
        return Err(ApiError::MissingParameter("batch"));
    }
    let (events, events_max) = (batch.len(), call.app.limits.events_per_batch_max);
    if events > events_max {
        return Err(ApiError::BatchTooLarge { events, events_max });
    }
    let mut publications = Vec::with_capacity(events);
    for event in batch.events() {
        let mut event = event?;
        let channel = event.channel.take();
        let channel = channel.ok_or(ApiError::MissingParameter("channel"))?;
        publications.push(Publication::new(&call, event, vec![channel])?);
    }
    check_rate(&call, &publications)?;
    let answer = async move {
        for publication in &publications {
            publication.publish(&call).await;
        }
        if publications.iter().all(|p| p.info.is_none()) {
            return "{}".to_owned();
        }
        let mut infos = Vec::with_capacity(publications.len());
        for publication in &publications {
            infos.extend(publication.infos(&call).await);
        }
        rest::batch(&infos)
    };
    Ok(json(to_the_end(answer).await?))
}

/// `POST /apps/:app_id/channels/:channel/events` with `name` and optionally `socket_id` in the
/// query; the body is the data. Answers 202 with nothing (`pusher.md` 5.8).
pub async fn publish_to_one(
    app_id: &str,
    channel: &str,
    request: Request,
) -> Result<Response, ApiError> {
    let mut call = request.of_app(app_id)?;
    let data = String::from_utf8(std::mem::take(&mut call.body));
    let event = Trigger {
        name: call.parameters.get("name").map(str::to_owned),
        data: Some(data.map_err(|_| ApiError::DataIsNotUtf8)?),
        socket_id: call.parameters.get("socket_id").map(str::to_owned),
        ..Trigger::default()
    };
    let channel = call.channel_in_path(channel)?.to_string();
    let publication = Publication::new(&call, event, vec![channel])?;
    check_rate(&call, [&publication])?;
    to_the_end(async move { publication.publish(&call).await }).await?;
    let mut response = Response::default();
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}

fn check_rate<'p>(
    call: &Call,
    publications: impl IntoIterator<Item = &'p Publication>,
) -> Result<(), ApiError> {
    let events = publications.into_iter().map(|p| p.channels.len()).sum();
    call.broker
        .allows_publishing(&call.app, events)
        .map_err(|wait| {
            REFUSALS.count(Limit::BackendEvents);
            let per_sec_max = call.app.limits.backend_events_per_sec_max;
            ApiError::TooManyEvents {
                per_sec_max: per_sec_max.map_or(0, NonZeroUsize::get),
                retry_after_secs: wait.as_secs() + u64::from(wait.subsec_nanos() > 0),
            }
        })
}

/// What the body leaves out may stand in the query (`pusher.md` 5.1).
fn completed(event: Trigger, query: &Parameters) -> Trigger {
    let parameter = |name| query.get(name).map(str::to_owned);
    let mut event = Trigger {
        name: event.name.or_else(|| parameter("name")),
        data: event.data.or_else(|| parameter("data")),
        socket_id: event.socket_id.or_else(|| parameter("socket_id")),
        info: event.info.or_else(|| parameter("info")),
        ..event
    };
    if event.channels.is_none() && event.channel.is_none() {
        let list: Vec<_> = query.all("channels[]").map(str::to_owned).collect();
        event.channels = (!list.is_empty()).then_some(list);
        event.channel = parameter("channels").or_else(|| parameter("channel"));
    }
    event
}

/// An event that has passed every check.
struct Publication {
    message: Message,
    channels: Vec<ChannelName>,
    except: Option<SocketId>,
    /// `None` if it names nothing.
    info: Option<Info>,
}

impl Publication {
    fn new(call: &Call, event: Trigger, channels: Vec<String>) -> Result<Self, ApiError> {
        let limits = &call.app.limits;
        let name = event.name.filter(|name| !name.is_empty());
        let name = name.ok_or(ApiError::MissingParameter("name"))?;
        let data = event.data.ok_or(ApiError::MissingParameter("data"))?;
        if channels.is_empty() {
            return Err(ApiError::MissingParameter("channels"));
        }

        let (chars, chars_max) = (name.chars().count(), limits.event_name_chars_max);
        if chars > chars_max {
            return Err(ApiError::EventNameTooLong { chars, chars_max });
        }
        if name.starts_with("pusher:") || name.starts_with("pusher_internal:") {
            return Err(ApiError::ReservedEventName);
        }
        let (given, channels_max) = (channels.len(), limits.channels_per_event_max);
        if given > channels_max {
            return Err(ApiError::TooManyChannels {
                channels: given,
                channels_max,
            });
        }
        let bytes_max = limits.event_data_bytes_max;
        if data.len() > bytes_max {
            return Err(ApiError::DataTooLarge { bytes_max });
        }
        let info = event.info.as_deref().map(Info::parse).transpose()?;
        if info.is_some_and(|info| info.cache) {
            return Err(ApiError::UnknownAttribute);
        }
        Ok(Self {
            channels: distinct(call, &channels)?,
            except: except(event.socket_id.as_deref())?,
            message: Message {
                name: name.into(),
                data: data.into(),
                user_id: None,
                ext: None,
                members: None,
            },
            info: info.filter(|info| *info != Info::default()),
        })
    }

    async fn publish(&self, call: &Call) {
        call.caller().published(&self.message.name, &self.channels);
        for channel in &self.channels {
            let message = self.message.clone();
            (call.broker)
                .publish(&call.app, channel, message, self.except)
                .await;
        }
    }

    /// What was asked for, of each channel.
    async fn infos(&self, call: &Call) -> Vec<ChannelInfo> {
        let Some(info) = self.info else {
            return vec![ChannelInfo::default(); self.channels.len()];
        };
        let mut infos = Vec::with_capacity(self.channels.len());
        for channel in &self.channels {
            let occupancy = call.broker.occupancy(&call.app, channel).await;
            infos.push(counts(info, channel, occupancy.as_ref()));
        }
        infos
    }
}

/// A channel that is named twice gets the event once: hosted answers with one entry for each
/// unique channel, so the list is a set.
fn distinct(call: &Call, names: &[String]) -> Result<Vec<ChannelName>, ApiError> {
    let mut seen = HashSet::with_capacity(names.len());
    let mut channels = Vec::with_capacity(names.len());
    for name in names {
        let channel = call.channel(name)?;
        if seen.insert(name) {
            channels.push(channel);
        }
    }
    Ok(channels)
}

/// The connection that is left out. An id that is well formed but nobody's leaves out none.
fn except(socket_id: Option<&str>) -> Result<Option<SocketId>, ApiError> {
    match socket_id {
        Some(text) if !SocketId::is_well_formed(text) => {
            Err(ApiError::InvalidParameter("socket_id"))
        }
        Some(text) => Ok(SocketId::parse(text)),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use serde_json::{Value, json};

    use super::super::testing::*;

    const TOO_MUCH_DATA: &str = "The data content of this event exceeds the allowed maximum \
        (10240 bytes). See https://pusher.com/docs/channels/server_api/http-api#publishing-events \
        for more info\n";
    const UNKNOWN_ATTRIBUTE: &str = "info should be a comma separated list of attributes\n";
    const RESERVED_NAME: &str = "Event names must not start with pusher: or pusher_internal:\n";

    /// `event` with the members of `changes` in place of its own.
    fn with(event: &Value, changes: Value) -> Value {
        let mut event = event.clone();
        let members = event.as_object_mut().unwrap();
        members.extend(changes.as_object().unwrap().clone());
        event
    }

    async fn publish(api: &Api, event: Value) -> Answer {
        api.post("/events", &event.to_string()).await
    }

    async fn publish_batch(api: &Api, events: &[Value]) -> Answer {
        let body = json!({ "batch": events });
        api.post("/batch_events", &body.to_string()).await
    }

    #[tokio::test]
    async fn an_event_reaches_each_named_channel_once_as_it_is() {
        let api = Api::new();
        let listener = api.listen("me", &["a", "presence-b", "c"]).await;
        let data = r#"{"url":"http:\/\/x","n":"\u00eb"}"#;
        let channels = ["a", "presence-b", "a", "nobodys"];
        let event = json!({"name": "App\\Events\\E", "channels": channels, "data": data});
        publish(&api, event).await.is(200, "{}");
        let got = |channel| format!(r"{channel} App\Events\E {data}");
        assert_eq!(listener.received(), [got("a"), got("presence-b")]);
    }

    #[tokio::test]
    async fn channels_may_be_a_list_one_name_or_channel() {
        let api = Api::new();
        let listener = api.listen("me", &["a", "#server-to-user-1"]).await;
        for (target, heard) in [
            (json!({"channels": ["a"]}), "a e x"),
            (json!({"channels": "a"}), "a e x"),
            (json!({"channel": "a"}), "a e x"),
            (json!({"channels": ["a"], "channel": "b"}), "a e x"),
            (
                json!({"channel": "#server-to-user-1"}),
                "#server-to-user-1 e x",
            ),
        ] {
            let event = with(&json!({"name": "e", "data": "x"}), target);
            publish(&api, event).await.is(200, "{}");
            assert_eq!(listener.received(), [heard]);
        }
    }

    #[tokio::test]
    async fn parameters_may_stand_in_the_query_but_the_body_wins() {
        let api = Api::new();
        let listener = api.listen("me", &["a", "b"]).await;
        let me = listener.socket_id;
        for (query, body, heard) in [
            (
                "name=q&channels[]=b&channels[]=a&data=%C3%AB%20%26".to_owned(),
                "",
                vec!["b q ë &", "a q ë &"],
            ),
            ("name=q&channels=a&data=x".into(), "{}", vec!["a q x"]),
            ("name=q&channel=a&data=x".into(), "", vec!["a q x"]),
            (
                format!("name=q&channel=a&data=x&socket_id={me}"),
                "",
                vec![],
            ),
            (
                "name=q&channels[]=b&data=y".into(),
                r#"{"name":"e","channel":"a"}"#,
                vec!["a e y"],
            ),
        ] {
            let answer = api.call("POST", "/events", &query, body).await;
            answer.is(200, "{}");
            assert_eq!(listener.received(), heard, "{query}");
        }
    }

    #[tokio::test]
    async fn the_connection_of_socket_id_is_left_out() {
        let api = Api::new();
        let (one, two) = (api.listen("1", &["a"]).await, api.listen("2", &["a"]).await);
        let event = json!({"name": "e", "channel": "a", "data": "x"});
        let except = |id: &str| with(&event, json!({"socket_id": id}));
        (publish(&api, except(&one.socket_id.to_string())).await).is(200, "{}");
        assert!(one.received().is_empty());
        assert_eq!(two.received(), ["a e x"]);
        for nobodys in ["1.1", "99999999999999999999.1"] {
            publish(&api, except(nobodys)).await.is(200, "{}");
            assert_eq!(one.received(), ["a e x"]);
        }
        for malformed in ["", "1", "1.2.3", "1.2\n", "-1.2"] {
            (publish(&api, except(malformed)).await).is(400, "Invalid socket_id\n");
        }
    }

    /// What is refused in both forms, with status and text.
    fn refused() -> Vec<(Value, u16, String)> {
        let refused = |changes: Value, status, text: &str| (changes, status, text.to_owned());
        vec![
            refused(
                json!({"name": null}),
                400,
                "Missing required parameter: name\n",
            ),
            refused(
                json!({"name": ""}),
                400,
                "Missing required parameter: name\n",
            ),
            refused(
                json!({"data": null}),
                400,
                "Missing required parameter: data\n",
            ),
            refused(json!({"name": 1}), 400, "Invalid name\n"),
            refused(
                json!({"name": "ë".repeat(201)}),
                400,
                "Event name too long (201 > 200)\n",
            ),
            refused(json!({"name": "pusher:x"}), 400, RESERVED_NAME),
            refused(
                json!({"name": "pusher_internal:member_added"}),
                400,
                RESERVED_NAME,
            ),
            refused(json!({"data": "é".repeat(5121)}), 413, TOO_MUCH_DATA),
            refused(
                json!({"channel": "a b"}),
                400,
                "Invalid channel name a b: only letters, digits and the characters _ - = @ , . ; \
                 are allowed\n",
            ),
            refused(
                json!({"channel": "x".repeat(300)}),
                400,
                &format!(
                    "Invalid channel name {}: a channel name has at most 164 characters\n",
                    "x".repeat(200)
                ),
            ),
            refused(
                json!({"channel": ""}),
                400,
                "Invalid channel name : a channel name must not be empty\n",
            ),
            refused(json!({"channel": ["a"]}), 400, "Invalid channel\n"),
            refused(json!({"socket_id": 1.2}), 400, "Invalid socket_id\n"),
            refused(json!({"info": "user_count,x"}), 400, UNKNOWN_ATTRIBUTE),
            refused(json!({"info": "cache"}), 400, UNKNOWN_ATTRIBUTE),
        ]
    }

    #[tokio::test]
    async fn one_faulty_event_refuses_the_request_and_nothing_is_published() {
        let api = Api::new();
        let listener = api.listen("me", &["a"]).await;
        let good = json!({"name": "e", "channel": "a", "data": "x"});
        for (changes, status, text) in refused() {
            let bad = with(&good, changes);
            publish(&api, bad.clone()).await.is(status, &text);
            let batch = [good.clone(), bad, good.clone()];
            publish_batch(&api, &batch).await.is(status, &text);
        }
        let plural = json!({"name": "e", "channels": ["a"], "data": "x"});
        (publish_batch(&api, &[good.clone(), plural]).await)
            .is(400, "Missing required parameter: channel\n");
        (publish_batch(&api, &[good, json!(1)]).await).is(400, "Invalid batch\n");
        let one_bad = json!({"name": "e", "channels": ["a", "a#b"], "data": "x"});
        assert_eq!(publish(&api, one_bad).await.status, 400);
        assert!(listener.received().is_empty());
    }

    #[tokio::test]
    async fn what_is_just_within_the_limits_is_published() {
        let api = Api::new();
        let longest = "x".repeat(164);
        let listener = api.listen("me", &[&longest, "a"]).await;
        let good = json!({"name": "e", "channel": "a", "data": "x"});
        for changes in [
            json!({"name": "ë".repeat(200)}),
            json!({"name": "client-x"}),
            json!({"name": "pusher"}),
            json!({"data": "é".repeat(5120)}),
            json!({"data": ""}),
            json!({"channel": longest}),
        ] {
            publish(&api, with(&good, changes)).await.is(200, "{}");
            assert_eq!(listener.received().len(), 1);
        }
    }

    #[tokio::test]
    async fn a_hundred_channels_and_ten_events_are_the_limit() {
        let api = Api::new();
        let names: Vec<_> = (0..101).map(|n| format!("c{n}")).collect();
        let event = |channels: &[String]| json!({"name": "e", "channels": channels, "data": "x"});
        (publish(&api, event(&names)).await).is(400, "Too many channels (101 > 100)\n");
        (publish(&api, event(&names[1..])).await).is(200, "{}");
        for none in [json!([]), json!(null)] {
            let event = with(&event(&[]), json!({ "channels": none }));
            (publish(&api, event).await).is(400, "Missing required parameter: channels\n");
        }
        let events = vec![json!({"name": "e", "channel": "a", "data": "x"}); 11];
        (publish_batch(&api, &events).await).is(400, "Batch too large (11 > 10)\n");
        (publish_batch(&api, &events[1..]).await).is(200, "{}");
        (publish_batch(&api, &[]).await).is(400, "Missing required parameter: batch\n");
    }

    #[tokio::test]
    async fn a_batch_goes_out_in_its_order() {
        let api = Api::new();
        let listener = api.listen("me", &["a", "b"]).await;
        let me = listener.socket_id.to_string();
        let events = [
            json!({"name": "1", "channel": "b", "data": "x"}),
            json!({"name": "2", "channel": "a", "data": [1, 2]}),
            json!({"name": "3", "channel": "b", "data": "x", "socket_id": me}),
            json!({"name": "4", "channel": "b", "data": "x"}),
        ];
        publish_batch(&api, &events).await.is(200, "{}");
        assert_eq!(listener.received(), ["b 1 x", "a 2 [1,2]", "b 4 x"]);
    }

    #[tokio::test]
    async fn an_event_reaches_everyone_though_its_sender_hangs_up() {
        let api = Api::new();
        let mut listeners = Vec::new();
        for _ in 0..3000 {
            listeners.push(api.listen("me", &["a"]).await);
        }
        let event = json!({"name": "e", "channel": "a", "data": "x"});
        let answer = publish(&api, event).now_or_never();
        assert!(answer.is_none(), "it was answered at once");
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(listeners.iter().all(|l| l.received() == ["a e x"]));
    }

    #[tokio::test]
    async fn info_is_answered_where_it_applies() {
        let api = Api::new();
        let _one = api.listen("same", &["a", "presence-p"]).await;
        let _two = api.listen("same", &["presence-p"]).await;
        let channels = ["presence-p", "a", "b", "a"];
        for (info, answer) in [
            ("", "{}"),
            (
                "user_count",
                r#"{"channels":{"presence-p":{"user_count":1},"a":{},"b":{}}}"#,
            ),
            (
                "user_count,subscription_count",
                r#"{"channels":{"presence-p":{"user_count":1,"subscription_count":2},"a":{"subscription_count":1},"b":{"subscription_count":0}}}"#,
            ),
        ] {
            let event = json!({"name": "e", "channels": channels, "data": "x", "info": info});
            publish(&api, event).await.is(200, answer);
        }
        let events = [
            json!({"name": "e", "channel": "presence-p", "data": "x", "info": "user_count"}),
            json!({"name": "e", "channel": "a", "data": "x"}),
            json!({"name": "e", "channel": "a", "data": "x", "info": "subscription_count"}),
        ];
        publish_batch(&api, &events).await.is(
            200,
            r#"{"batch":[{"user_count":1},{},{"subscription_count":1}]}"#,
        );
        let event = json!({"name": "e", "channel": "a", "data": "x", "info": "user_count"});
        (publish_batch(&api, &[event]).await).is(200, r#"{"batch":[{}]}"#);
    }

    #[tokio::test]
    async fn a_body_that_is_no_json_object_is_refused() {
        let api = Api::new();
        for path in ["/events", "/batch_events"] {
            for body in ["x", "[]", "null", "{}{}", "name=e"] {
                api.post(path, body).await.is(400, "Invalid JSON\n");
            }
        }
        (api.post("/events", "").await).is(400, "Missing required parameter: name\n");
    }

    #[tokio::test]
    async fn the_deprecated_form_takes_its_body_as_the_data() {
        let api = Api::new();
        let listener = api.listen("me", &["a;b"]).await;
        let path = "/channels/a%3Bb/events";
        for body in ["{\"some\":\"data\"}", " [ ", ""] {
            let answer = api.call("POST", path, "name=foo", body).await;
            answer.is(202, "");
            assert_eq!(listener.received(), [format!("a;b foo {body}")]);
        }
        let except = format!("name=foo&socket_id={}", listener.socket_id);
        api.call("POST", path, &except, "x").await.is(202, "");
        assert!(listener.received().is_empty());
        let too_large = "x".repeat(10_241);
        for (path, query, body, status, text) in [
            (path, "", "x", 400, "Missing required parameter: name\n"),
            (path, "name=pusher:x", "x", 400, RESERVED_NAME),
            (path, "name=e&socket_id=x", "x", 400, "Invalid socket_id\n"),
            (path, "name=e", &too_large, 413, TOO_MUCH_DATA),
        ] {
            api.call("POST", path, query, body).await.is(status, text);
        }
        let answer = api.call("POST", "/channels/a%20b/events", "name=e", "x");
        assert!(answer.await.body.starts_with("Invalid channel name a b: "));
    }
}
