//! The users of presence channels, and signed-in ones.

use warp::reply::Response;

use super::error::ApiError;
use super::request::{Call, Request};
use super::to_the_end;
use crate::auth::percent_decode;
use crate::transport::http::json;
use crate::wire::rest;

/// What server libraries let through (`pusher.md` 12).
const USER_ID_CHARS_MAX: usize = 200;

/// `GET /apps/:app_id/channels/:channel/users` (`pusher.md` 5.7)
pub async fn list(app_id: &str, channel: &str, request: Request) -> Result<Response, ApiError> {
    let call = request.of_app(app_id)?;
    let channel = call.channel_in_path(channel)?;
    if !channel.is_presence() {
        return Err(ApiError::UsersOfChannel);
    }
    let members = call.broker.members(&call.app, &channel).await;
    let user_ids: Vec<_> = members
        .iter()
        .map(|member| member.user_id.clone())
        .collect();
    Ok(json(rest::users(&user_ids)))
}

/// `POST /apps/:app_id/users/:user_id/terminate_connections`. A user that is not signed in is no
/// error (`pusher.md` 4.3).
pub async fn terminate(
    app_id: &str,
    user_id: &str,
    request: Request,
) -> Result<Response, ApiError> {
    terminate_for(request.of_app(app_id)?, user_id).await
}

/// `POST /users/:user_id/terminate_connections`
pub async fn terminate_without_app(user_id: &str, request: Request) -> Result<Response, ApiError> {
    terminate_for(request.of_key()?, user_id).await
}

async fn terminate_for(call: Call, user_id: &str) -> Result<Response, ApiError> {
    let user_id = percent_decode(user_id).into_owned();
    if user_id.chars().count() > USER_ID_CHARS_MAX {
        return Err(ApiError::InvalidParameter("user_id"));
    }
    call.caller().terminated(&user_id);
    to_the_end(async move { call.broker.terminate_user(&call.app, &user_id).await }).await?;
    Ok(json("{}".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;

    #[tokio::test]
    async fn the_users_of_a_presence_channel_are_listed_once_each() {
        let api = Api::new();
        let _connections = [
            api.listen("9007199254740993", &["presence-p", "room"])
                .await,
            api.listen("ë", &["presence-p"]).await,
            api.listen("ë", &["presence-p"]).await,
        ];
        (api.get("/channels/presence-p/users", "").await)
            .is(200, r#"{"users":[{"id":"9007199254740993"},{"id":"ë"}]}"#);
        (api.get("/channels/presence-nobody/users", "").await).is(200, r#"{"users":[]}"#);
        (api.get("/channels/room/users", "").await)
            .is(400, "Users can only be retrieved for presence channels\n");
    }

    /// A connection of app 3, signed in as the user.
    async fn signed_in(api: &Api, user_id: &str) -> Listener {
        let listener = api.listen(user_id, &["presence-p"]).await;
        let app = api.front.apps.by_id(APP.app).unwrap();
        let subscriber = listener.subscriber();
        api.front.broker.sign_in(&app, subscriber, user_id).await;
        listener
    }

    #[tokio::test]
    async fn terminating_closes_what_is_signed_in_as_the_user_and_nothing_else() {
        let api = Api::new();
        let member = api.listen("a@b/c", &["presence-p"]).await;
        let other = signed_in(&api, "other").await;
        for body in ["{}", ""] {
            let connections = [
                signed_in(&api, "a@b/c").await,
                signed_in(&api, "a@b/c").await,
            ];
            let path = "/users/a%40b%2Fc/terminate_connections";
            api.post(path, body).await.is(200, "{}");
            assert!(connections.iter().all(Listener::is_closed));
        }
        assert!(!member.is_closed() && !other.is_closed());
        let nobody = "/users/nobody/terminate_connections";
        api.post(nobody, "{}").await.is(200, "{}");
        let long = |length| format!("/users/{}/terminate_connections", "x".repeat(length));
        api.post(&long(200), "{}").await.is(200, "{}");
        api.post(&long(201), "{}")
            .await
            .is(400, "Invalid user_id\n");
    }

    #[tokio::test]
    async fn without_an_app_in_the_path_the_key_tells_whose_user_it_is() {
        let api = Api::new();
        let connection = signed_in(&api, "1").await;
        let path = "/users/1/terminate_connections";
        let target = |signer: Signer| signer.sign(NOW_SECS, "POST", path, "", "{}");
        let sent = async |target: &str| api.send("POST", target, "{}").await;
        sent(path).await.is(401, "Missing parameter: auth_key\n");
        let unknown = Signer {
            key: "nobody",
            ..APP
        };
        (sent(&target(unknown)).await).is(401, "Unknown auth_key\n");
        sent(&target(DISABLED)).await.is(403, "App disabled\n");
        let wrong = Signer {
            secret: "wrong",
            ..APP
        };
        assert_eq!(sent(&target(wrong)).await.status, 401);
        sent(&target(NEW_KEY)).await.is(200, "{}");
        assert!(!connection.is_closed());
        sent(&target(APP)).await.is(200, "{}");
        assert!(connection.is_closed());
        assert_eq!(api.send("GET", path, "").await.status, 405);
    }
}
