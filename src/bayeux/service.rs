//! The service channels that the server itself offers (`bayeux.md` 8.6, 8.7): `/service/user` and
//! the companions of presence channels.

use super::authorise::check_user;
use super::check::Service;
use super::client::{Client, ClientSession};
use super::encoding::{frame, watchlist_events};
use super::site::Site;
use crate::audit;
use crate::auth::{split_auth, user_text};
use crate::broker::{SignIn, SignedInAsAnother};
use crate::model::ChannelName;
use crate::wire::bayeux::{
    AUTHENTICATION_REQUIRED, Given, INVALID_SIGNATURE, INVALID_USER, Reason, UNKNOWN_CLIENT,
};
use crate::wire::pusher::{self, UserData};

impl Site {
    pub(super) async fn serve(
        &self,
        service: Service,
        session: Option<&ClientSession>,
        data: &str,
    ) -> Result<(), Reason> {
        match service {
            Service::User => {
                let session = session.ok_or(AUTHENTICATION_REQUIRED)?;
                self.sign_in(&session.client, data).await
            }
            Service::Presence(room) => {
                let client = &session.ok_or(AUTHENTICATION_REQUIRED)?.client;
                let state = client.state.lock().await;
                if !state.membership.held().channels.contains_key(&room) {
                    return Err(AUTHENTICATION_REQUIRED);
                }
                self.send_roster(client, &room).await;
                Ok(())
            }
            // The application's own: nobody here listens.
            Service::Other => Ok(()),
        }
    }

    /// The members of a presence channel, as the next delivery on its companion.
    pub(super) async fn send_roster(&self, client: &Client, room: &ChannelName) {
        let roster = self.broker.members(&client.app, room).await;
        if let Some(frame) = client.encoding.roster(room, &roster) {
            client.push(frame);
        }
    }

    /// `data` holds `auth`, `KEY:SIGNATURE` over `socket_id::user::user_data`, and `user_data`, as
    /// for Pusher (`pusher.md` 4.1). From then on what is sent to the user arrives here.
    async fn sign_in(&self, client: &Client, data: &str) -> Result<(), Reason> {
        let text = |name| Given::parse(data)?.member(name)?.text();
        let auth = text("auth").ok_or(AUTHENTICATION_REQUIRED)?;
        let user_data = text("user_data").ok_or(AUTHENTICATION_REQUIRED)?;
        let (key, signature) = split_auth(&auth);
        let signed = user_text(&client.socket_id.to_string(), &user_data);
        let key = client.app.key(key);
        if !key.is_some_and(|key| key.secret.verify(signed.as_bytes(), signature)) {
            return Err(INVALID_SIGNATURE);
        }
        let UserData { user, watchlist } =
            pusher::parse_user_data(&user_data).ok_or(INVALID_USER)?;
        check_user(&user, &client.app.limits)?;

        let mut state = client.state.lock().await;
        if !client.is_open() {
            return Err(UNKNOWN_CLIENT);
        }
        let user_id = user.user_id.clone();
        let inbox = ChannelName::server_to_user(&user_id);
        let signed_in = state.membership.sign_in(user).await;
        if signed_in.map_err(|SignedInAsAnother| INVALID_USER)? == SignIn::First {
            // Only presence channels can be full.
            let _ = client.join(&mut state, &inbox, None).await;
        }
        audit::signed_in(&client.app.id, client.socket_id, &user_id);
        let introduce = |online: &[_], offline: &[_]| {
            watchlist_events(online, offline).map(|message| frame(&message))
        };
        state.membership.watch(watchlist, introduce).await;
        Ok(())
    }
}
