//! The HTTP API of hosted Pusher (`pusher.md` 5).

use std::sync::Arc;

use warp::reply::Response;
use warp::{Filter, Rejection};

use crate::apps::AppRegistry;
use crate::broker::Broker;

/// What every request shares.
pub struct Front {
    pub broker: Arc<Broker>,
    pub apps: Arc<AppRegistry>,
    pub request_body_bytes_max: usize,
}

pub fn routes(
    _front: Arc<Front>,
) -> impl Filter<Extract = (Response,), Error = Rejection, Future: Send> + Clone + Send + Sync {
    warp::any().and_then(|| async { Err::<Response, _>(warp::reject::not_found()) })
}
