// HTTPS endpoints: the certificate counts.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import { APP, Peer } from '../raw/peer.js';
import { atEnd } from '../support/at-end.js';
import { until } from '../support/events.js';
import { startRaptor } from '../support/raptor.js';
import { Receiver } from './receiver.js';

const dir = mkdtempSync(join(tmpdir(), 'raptor-tls-'));
atEnd(() => rmSync(dir, { recursive: true, force: true }));

/** A certificate that vouches for itself. */
function certificate(name, subject) {
  const [key, cert] = [join(dir, `${name}.key`), join(dir, `${name}.pem`)];
  execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2', '-keyout', key, '-out', cert,
    '-subj', '/CN=test', '-addext', `subjectAltName=${subject}`, '-addext', 'basicConstraints=critical,CA:FALSE'], { stdio: 'ignore' });
  return { file: cert, tls: { key: readFileSync(key), cert: readFileSync(cert) } };
}

const good = certificate('good', 'IP:127.0.0.1');
const other = certificate('other', 'DNS:elsewhere.example');

async function sends(tls, trusted) {
  const receiver = await Receiver.start({ tls });
  const config = { apps: [{ ...APP, webhooks: [receiver.endpoint({ events: ['channel_occupied'] })] }] };
  const raptor = await startRaptor({ config, env: { SSL_CERT_FILE: trusted } });
  const peer = await Peer.connect(raptor);
  await peer.subscribe('room');
  return { receiver, raptor };
}

test('a certificate of a trusted authority for the host is taken', async () => {
  const { receiver } = await sends(good.tls, good.file);
  await receiver.until(1);
  receiver.isExact();
});

for (const [what, tls, trusted] of [['of nobody that is trusted', good.tls, other.file], ['for another host', other.tls, other.file]]) {
  test(`a certificate ${what} is refused, before anything is sent`, async () => {
    const { receiver, raptor } = await sends(tls, trusted);
    await until(() => /webhooks do not arrive.*certificate/.test(raptor.stderr()), () => raptor.stderr());
    assert.equal(receiver.requests.length, 0);
  });
}
