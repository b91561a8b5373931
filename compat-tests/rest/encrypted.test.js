// Encrypted channels: the server is given ciphertext and hands it on; it neither reads nor checks it (`pusher.md` 8).

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import Pusher from 'pusher';

import { startRaptor } from '../support/raptor.js';
import { APP, Peer } from '../raw/peer.js';
import { Api, TOO_MUCH_DATA } from './api.js';

const raptor = await startRaptor({ config: { apps: [APP] } });
const api = new Api(raptor, APP);
const CHANNELS = ['private-encrypted-a', 'private-encrypted-cache-b'];

async function listener() {
  const peer = await Peer.connect(raptor);
  for (const channel of CHANNELS) await peer.subscribe(channel);
  await peer.arrivingNow();
  return peer;
}

test('what is published is handed on to the letter, be it ciphertext or not', async () => {
  const peer = await listener();
  for (const data of ['{"nonce":"AAAA","ciphertext":"BBBB"}', '{ "nonce" : 1 }', 'no JSON at all', '', '{"ciphertext":"\\u00eb\\/+=="}']) {
    for (const channel of CHANNELS) {
      await api.trigger(channel, 'secret', data);
      await peer.receives({ event: 'secret', channel, data });
    }
  }
});

test('one request may publish to several of them, and to others beside them', async () => {
  const peer = await listener();
  await api.trigger([...CHANNELS, 'room'], 'secret', 'x');
  await peer.receives(...CHANNELS.map((channel) => ({ event: 'secret', channel, data: 'x' })));
});

test('the limit of data is that of the ciphertext', async () => {
  const answer = await api.post('/events', { name: 'secret', channels: [CHANNELS[0]], data: 'x'.repeat(10_241) });
  assert.deepEqual([answer.status, answer.text], [413, `${TOO_MUCH_DATA}\n`]);
  await api.trigger(CHANNELS[0], 'secret', 'x'.repeat(10_240));
});

test('the secret that members get is made of the master key and the name of the channel, as in the vector', () => {
  const { credentials, subscriptions } = JSON.parse(readFileSync(new URL('../../fixtures/pusher/subscriptions.json', import.meta.url)));
  const vector = subscriptions.find(({ name }) => name === 'V8');
  const masterKey = Buffer.from(vector.master_key_base64, 'base64');
  assert.equal(createHash('sha256').update(vector.channel).update(masterKey).digest('base64'), vector.shared_secret);
  const pusher = new Pusher({ appId: credentials.app_id, key: credentials.key, secret: credentials.secret, encryptionMasterKeyBase64: vector.master_key_base64 });
  assert.equal(pusher.authorizeChannel('1234.1234', vector.channel).shared_secret, vector.shared_secret);
});
