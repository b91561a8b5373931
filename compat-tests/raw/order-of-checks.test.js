// A connection with several faults is told of the first in the order key, app, TLS, protocol, origin, quota (`pusher.md` 1.2).

import { test } from 'node:test';

import { startRaptor } from '../support/raptor.js';
import { APP, Peer, appNamed } from './peer.js';

const faulty = { force_tls: true, allowed_origins: ['https://a.example'], limits: { connections_max: 1 } };
const open = appNamed('open', faulty);
const disabled = appNamed('disabled', { ...faulty, enabled: false });
const raptor = await startRaptor({ config: { apps: [APP, open, disabled] } });

const overTls = { 'X-Forwarded-Proto': 'https' };
const allowed = { ...overTls, Origin: 'https://a.example' };
const stranger = { Origin: 'https://b.example' };

test('of several faults the first in order is told', async () => {
  await Peer.connect(raptor, { app: open, headers: allowed }); // from here on the app is full
  for (const [code, message, options] of [
    [4001, 'Application does not exist', { path: '/app/nobody', headers: stranger }],
    [4003, 'Application disabled', { app: disabled, query: 'protocol=1', headers: stranger }],
    [4000, 'Application only accepts SSL connections, reconnect using wss://', { app: open, query: 'protocol=1', headers: stranger }],
    [4007, 'Unsupported protocol version', { app: open, query: 'protocol=1', headers: { ...overTls, ...stranger } }],
    [4009, 'Origin not allowed', { app: open, headers: { ...overTls, ...stranger } }],
    [4004, 'Application is over connection quota', { app: open, headers: allowed }],
  ]) {
    const peer = await Peer.open(raptor, options);
    await peer.isClosed(code, message);
  }
});
