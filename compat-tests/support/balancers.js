// Load balancers that send everybody anywhere: nginx and HAProxy as the README sets them up, request by request, and one that does not look
// into connections.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { atEnd } from './at-end.js';
import { until } from './events.js';
import { freePort } from './free-port.js';
import { startNginx } from './nginx.js';
import { startRelay } from './relay.js';

/** `(nodes, {connectionsMax}) => Promise<{port, url}>`: how each is started in front of nodes. It ends with the test file. */
export const BALANCERS = {
  async nginx(nodes, { connectionsMax = 4096 } = {}) {
    return withUrl(await startNginx((port) => example('nginx', nodes, `127.0.0.1:${port} backlog=4096`), connectionsMax));
  },

  async haproxy(nodes, { connectionsMax = 4096 } = {}) {
    const port = await freePort();
    const directory = mkdtempSync(join(tmpdir(), 'raptor-haproxy-'));
    const file = join(directory, 'haproxy.cfg');
    writeFileSync(file, `global\n    maxconn ${connectionsMax}\n${example('haproxy', nodes, `127.0.0.1:${port}`)}`);
    const child = spawn('haproxy', ['-db', '-f', file], { stdio: ['ignore', 'ignore', 'pipe'] });
    let said = '';
    child.stderr.setEncoding('utf8').on('data', (text) => { said += text; });
    atEnd(async () => {
      const ended = child.exitCode === null && once(child, 'exit');
      child.kill('SIGTERM');
      await ended;
      rmSync(directory, { recursive: true, force: true });
    });
    await until(() => child.exitCode !== null || fetch(`http://127.0.0.1:${port}/livez`).then(({ ok }) => ok, () => false), 'HAProxy listens');
    if (child.exitCode !== null) throw new Error(`HAProxy ended: ${said}`);
    return withUrl({ port });
  },

  async 'by connection'(nodes) {
    return withUrl(await startRelay(...nodes));
  },
};

const withUrl = ({ port }) => ({ port, url: `http://127.0.0.1:${port}` });

/** The README's example in that language, with our nodes and our address in place of its own. */
function example(language, nodes, address) {
  const readme = readFileSync(new URL('../../README.md', import.meta.url), 'utf8');
  const found = [...readme.matchAll(/```(\w+)\n(.*?)```/gs)].filter(([, of, text]) => of === language && text.includes('10.0.0.11'));
  if (found.length !== 1) throw new Error(`the README has ${found.length} examples for ${language}`);
  const [, , text] = found[0];
  let nth = 0;
  const servers = text.replace(/^ +server .*10\.0\.0\.\d+:6001.*\n/gm, (line) => {
    if (nth++ > 0) return '';
    return nodes.map(({ port }, n) => line.replace(/10\.0\.0\.\d+:6001/, `127.0.0.1:${port}`).replace('server one', `server node-${n}`)).join('');
  });
  const [, key] = /^ +(listen|bind) .*80;?$/m.exec(servers);
  return servers.replace(new RegExp(`^( +)${key} [^;\n]*80`, 'm'), `$1${key} ${address}`);
}
