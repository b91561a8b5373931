// The application beside the server: an unmodified `pusher` library behind the two endpoints that clients ask for signatures,
// and the calls a scenario makes through the HTTP API.

import { createServer } from 'node:http';
import { once } from 'node:events';

import PusherServer from 'pusher';

import { atEnd } from './at-end.js';
import { TEST_APP } from './raptor.js';

const MASTER_KEY_BASE64 = 'MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE='; // pusher.md 11, V8

/** The `pusher` library for `server` with the credentials of `app`. */
export function pusherLibrary(server, app = TEST_APP) {
  return new PusherServer({
    appId: app.id, key: app.key, secret: app.secret, host: '127.0.0.1', port: String(server.port), useTLS: false, encryptionMasterKeyBase64: MASTER_KEY_BASE64,
  });
}

/**
 * Starts the application of `server`. It answers, to any origin and in plain form posts as pusher-js sends them,
 *
 * - `POST /pusher/auth` `socket_id`, `channel_name`, `member` (JSON `{user_id, user_info}`; absent: no channel data)
 * - `POST /pusher/user-auth` `socket_id`, `user` (JSON `{id, user_info, watchlist}`)
 *
 * with `forged=1` signed with a wrong secret, with `denied=1` refused by status 403.
 *
 * @param {import('./raptor.js').Raptor} server
 * @param {{id: string, key: string, secret: string}} [app]
 * @returns {Promise<{url: string, calls: Record<string, (...args: any[]) => Promise<any>>}>} `calls` take and return JSON only, so that a page can make them too
 */
export async function startApplication(server, app = TEST_APP) {
  const library = pusherLibrary(server, app);
  const forger = pusherLibrary(server, { ...app, secret: 'not-the-secret' });
  let running = server;

  const http = createServer(async (request, response) => {
    const form = new URLSearchParams(await textOf(request));
    const signer = form.has('forged') ? forger : library;
    const answer = (status, body) => response.writeHead(status, { 'Content-Type': 'application/json', 'Access-Control-Allow-Origin': '*' }).end(JSON.stringify(body));

    if (form.has('denied')) return answer(403, { error: 'denied' });
    switch (request.url) {
      case '/pusher/auth': return answer(200, signer.authorizeChannel(form.get('socket_id'), form.get('channel_name'), JSON.parse(form.get('member'))));
      case '/pusher/user-auth': return answer(200, signer.authenticateUser(form.get('socket_id'), JSON.parse(form.get('user'))));
      default: return answer(404, {});
    }
  });
  http.listen(0, '127.0.0.1');
  await once(http, 'listening');
  atEnd(() => { http.close(); http.closeAllConnections(); });

  return {
    url: `http://127.0.0.1:${http.address().port}`,
    calls: {
      trigger: async (channels, event, data, params) => { await library.trigger(channels, event, data, params); },
      triggerBatch: async (batch) => { await library.triggerBatch(batch); },
      get: async (path, params) => (await library.get({ path, params })).json(),
      sendToUser: async (userId, event, data) => { await library.sendToUser(userId, event, data); },
      terminate: async (userId) => { await library.terminateUserConnections(userId); },
      restartServer: async (signal) => { running = await running.restart(signal); },
    },
  };
}

async function textOf(request) {
  let text = '';
  for await (const chunk of request) text += chunk;
  return text;
}
