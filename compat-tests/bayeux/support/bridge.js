// One server, its application, pusher-js and Faye clients: what the tests that look at both protocols hold in their hands.

import { startApplication } from '../../support/application.js';
import { worldInNode } from '../../support/in-node.js';
import { faye } from './in-node.js';
import { startBayeux } from './server.js';
import { createWorld } from './world.js';

/** What a trusted publisher shows in `ext`. */
export const PASSWORD = { password: 'correct-horse' };

/**
 * @param {object} [options] as `startBayeux`; `transport`: of the Faye clients
 * @returns {Promise<object>} `server`, `application`; `pusher`: a world of pusher-js 8.6; `bayeux`: a world of Faye 1.4;
 *   `signing(params)`: a Faye client that has its private and presence subscriptions signed by the application's unchanged Pusher endpoint
 */
export async function startBridge({ bayeux: settings = {}, transport = 'websocket', ...options } = {}) {
  const publishTokens = Object.entries(PASSWORD).map(([key, token]) => ({ key, token }));
  const server = await startBayeux({ bayeux: { publish_tokens: publishTokens, ...settings }, ...options });
  const application = await startApplication(server);
  const pusher = await worldInNode('8.6', server);
  const bayeux = createWorld({ Faye: faye('1.4'), url: server.url, transport, holdMs: 1000 * (settings.hold_secs ?? 45) });

  function signing(params = {}, options) {
    const client = bayeux.client(options);
    client.addExtension(signer(application.url, params));
    return client;
  }
  return { server, application, pusher, bayeux, signing };
}

/**
 * The extension that a Faye page needs for private and presence channels (`bayeux.md` 8.6).
 *
 * @param {string} applicationUrl
 * @param {{member?: object, forged?: boolean}} params what the application says of this client
 */
export function signer(applicationUrl, { member = null, forged = false }) {
  let socketId;
  return {
    incoming(message, next) {
      if (message.channel === '/meta/handshake') socketId = message.ext?.socket_id;
      next(message);
    },
    outgoing(message, next) {
      const [, kind, rest] = /^\/(private|presence)\/(.+)$/.exec(message.channel === '/meta/subscribe' ? message.subscription : '') ?? [];
      if (!kind) return next(message);
      const form = new URLSearchParams({ socket_id: socketId, channel_name: `${kind}-${rest.replaceAll('/', '.')}`, member: JSON.stringify(member) });
      if (forged) form.set('forged', '1');
      fetch(`${applicationUrl}/pusher/auth`, { method: 'POST', body: form })
        .then((answer) => answer.json())
        .then((proof) => next({ ...message, ext: { ...message.ext, ...proof } }));
    },
  };
}

/** The `ext` of the last successful handshake. */
export function socketIdOf({ seen }) {
  return seen.findLast(({ channel, successful }) => channel === '/meta/handshake' && successful).ext.socket_id;
}
