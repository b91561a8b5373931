use std::sync::Arc;

use warp::reply::Response;
use warp::{Filter, Rejection};

use super::error::ApiError;
use super::request::{Clock, Methods, request};
use super::{Front, channels, events, users};
use crate::model::since_1970;

/// Every path of the API. Rejects all others.
pub fn routes(
    front: Arc<Front>,
) -> impl Filter<Extract = (Response,), Error = Rejection, Future: Send> + Clone + Send + Sync {
    table(front, || since_1970().as_secs())
}

/// The URL table (`pusher.md` 5.1). A slash at the end of a path is passed over.
pub(super) fn table(
    front: Arc<Front>,
    clock: Clock,
) -> impl Filter<Extract = (Response,), Error = Rejection, Future: Send> + Clone + Send + Sync {
    let get = request(front.clone(), clock, Methods::Get);
    let post = request(front, clock, Methods::Post);

    let publish = warp::path!("apps" / String / "events")
        .and(post.clone())
        .then(events::publish);
    let publish_batch = warp::path!("apps" / String / "batch_events")
        .and(post.clone())
        .then(events::publish_batch);
    let list_channels = warp::path!("apps" / String / "channels")
        .and(get.clone())
        .then(channels::list);
    let show_channel = warp::path!("apps" / String / "channels" / String)
        .and(get.clone())
        .then(channels::show);
    let list_users = warp::path!("apps" / String / "channels" / String / "users")
        .and(get.clone())
        .then(users::list);
    let terminate = warp::path!("apps" / String / "users" / String / "terminate_connections")
        .and(post.clone())
        .then(users::terminate);
    // As Python's library sends it (`pusher.md` 4.3).
    let terminate_without_app = warp::path!("users" / String / "terminate_connections")
        .and(post.clone())
        .then(users::terminate_without_app);

    // Deprecated (`pusher.md` 5.8).
    let publish_to_one = warp::path!("apps" / String / "channels" / String / "events")
        .and(post)
        .then(events::publish_to_one);
    let channel_stats = warp::path!("apps" / String / "channels" / String / "stats")
        .and(get)
        .then(channels::stats);

    (publish.or(publish_batch).unify())
        .or(list_channels)
        .unify()
        .or(show_channel)
        .unify()
        .or(list_users)
        .unify()
        .or(terminate)
        .unify()
        .or(terminate_without_app)
        .unify()
        .or(publish_to_one)
        .unify()
        .or(channel_stats)
        .unify()
        .map(|outcome: Result<Response, ApiError>| outcome.unwrap_or_else(ApiError::into_response))
}
