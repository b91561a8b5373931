// The server libraries that do not run here, by the requests they make and by the answers they can read (`pusher.md` 5.1, 5.5–5.9).
// Bodies are written as each library's JSON encoder writes them; what reaches the subscriber is the inner text to the letter.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { startRaptor } from '../support/raptor.js';
import { APP, Peer } from '../raw/peer.js';
import { Api, send, signedTarget } from './api.js';

const raptor = await startRaptor({ config: { apps: [APP] } });
const api = new Api(raptor, APP);

const LIBRARIES = {
  PHP: {
    headers: { 'Content-Type': 'application/json', 'X-Pusher-Library': 'pusher-http-php 7.2.6' },
    body: String.raw`{"name":"e","data":"{\"url\":\"http:\\\/\\\/x\",\"name\":\"Zo\\u00eb\"}","channel":"room"}`,
    delivered: String.raw`{"url":"http:\/\/x","name":"Zo\u00eb"}`,
  },
  Go: {
    headers: { 'Content-Type': 'application/json', 'X-Pusher-Library': 'pusher-http-go 5.1.1', 'Accept-Encoding': 'gzip' },
    body: String.raw`{"name":"e","channels":["room"],"data":"{\"html\":\"\\u003cb\\u003e\"}"}`,
    delivered: String.raw`{"html":"\u003cb\u003e"}`,
  },
  Java: {
    headers: { 'Content-Type': 'application/json; charset=UTF-8', 'X-Pusher-Library': 'pusher-http-java 1.3.4' },
    body: String.raw`{"channels":["room"],"name":"e","data":"{\"sum\":\"1\\u003d1\"}"}`,
    delivered: String.raw`{"sum":"1\u003d1"}`,
  },
  '.NET': {
    headers: { 'Content-Type': 'application/json; charset=utf-8', 'Pusher-Library-Name': 'pusher-http-dotnet', 'Pusher-Library-Version': '5.0.0' },
    body: String.raw`{"name":"e","data":"{\"name\":\"Zoë\"}","channels":["room"],"socket_id":null,"info":null}`,
    delivered: '{"name":"Zoë"}',
  },
};

/** Java and PHP take nothing but 200 for success; PHP and Go want an object in it. */
async function succeeds(answer) {
  const { status, headers, text } = await answer;
  assert.deepEqual([status, headers['content-type']], [200, 'application/json'], text);
  const value = JSON.parse(text);
  assert.ok(typeof value === 'object' && value !== null && !Array.isArray(value), text);
  return value;
}

describe('libraries that do not run here', () => {
  for (const [library, { headers, body, delivered }] of Object.entries(LIBRARIES)) {
    test(`${library} publishes, and its text arrives as its encoder wrote it`, async () => {
      const peer = await Peer.connect(raptor);
      await peer.subscribe('room');
      assert.deepEqual(await succeeds(api.post('/events', body, { headers })), {});
      await peer.receives({ event: 'e', channel: 'room', data: delivered });
      await peer.close();
    });

    test(`${library} reads the state of channels with the headers of a POST`, async () => {
      const get = (path, params) => succeeds(api.get(path, params, { headers }));
      assert.deepEqual(await get('/channels', { filter_by_prefix: 'presence-nothing', info: 'user_count' }), { channels: {} });
      assert.deepEqual(await get('/channels/presence-nothing', { info: 'user_count,subscription_count' }), { occupied: false, user_count: 0, subscription_count: 0 });
      assert.deepEqual(await get('/channels/presence-nothing/users'), { users: [] });
    });

    test(`${library} sends batches and terminates users`, async () => {
      const batch = [{ channel: 'empty', name: 'a', data: '1', info: 'subscription_count' }, { channel: 'empty', name: 'b', data: '2' }];
      assert.deepEqual(await succeeds(api.post('/batch_events', { batch }, { headers })), { batch: [{ subscription_count: 0 }, {}] });
      assert.deepEqual(await succeeds(api.post('/batch_events', { batch: batch.slice(1) }, { headers })), {});
      assert.deepEqual(await succeeds(api.post('/users/nobody/terminate_connections', '{}', { headers })), {});
    });
  }

  test('PHP sorts the signature among the other parameters', async () => {
    const target = signedTarget({ app: APP, method: 'GET', path: `/apps/${APP.id}/channels`, params: { filter_by_prefix: 'nothing' } });
    const [path, query] = target.split('?');
    assert.deepEqual(await succeeds(send(raptor, { method: 'GET', target: `${path}?${query.split('&').sort().join('&')}` })), { channels: {} });
  });

  test('Go reads the ids of users as strings, though the application signed a number', async () => {
    const peer = await Peer.connect(raptor);
    await peer.subscribe('presence-go', { channelData: '{"user_id":10}' });
    assert.deepEqual(await succeeds(api.get('/channels/presence-go/users')), { users: [{ id: '10' }] });
  });
});
