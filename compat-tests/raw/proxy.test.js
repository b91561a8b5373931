// Behind a proxy that ends TLS: how the server knows what came over TLS (`pusher.md` 1.7, code 4000).

import { test } from 'node:test';

import { startRaptor } from '../support/raptor.js';
import { APP, Peer, appNamed } from './peer.js';

const tlsOnly = appNamed('tls-only', { force_tls: true });
const raptor = await startRaptor({ config: { apps: [APP, tlsOnly] } });
const refusal = [4000, 'Application only accepts SSL connections, reconnect using wss://'];

test('a TLS-only app takes what the proxy received over TLS, and nothing else', async () => {
  await Peer.connect(raptor, { app: tlsOnly, headers: { 'X-Forwarded-Proto': 'https' } });
  for (const protocol of ['http', 'ws', '', undefined]) {
    const peer = await Peer.open(raptor, { app: tlsOnly, headers: { 'X-Forwarded-Proto': protocol } });
    await peer.isClosed(...refusal);
  }
});

test('other apps take both', async () => {
  for (const protocol of ['http', 'https']) await Peer.connect(raptor, { headers: { 'X-Forwarded-Proto': protocol } });
});
