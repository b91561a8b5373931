// A proxy in front of a server.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { atEnd } from '../support/at-end.js';
import { until } from '../support/events.js';

/** nginx as Debian has it, with its default buffering, HTTP/1.0 to the server and no upgrades: what a WebSocket asks for is refused. `more`: further directives. */
export async function startNginx(server, more = '') {
  const probe = createServer().listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port } = probe.address();
  await new Promise((resolve) => { probe.close(resolve); });
  const directory = mkdtempSync(join(tmpdir(), 'raptor-nginx-'));
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((name) => `${name}_temp_path ${directory}/${name};`).join(' ');
  writeFileSync(join(directory, 'nginx.conf'), `
    ${process.getuid() === 0 ? 'user root;' : ''} daemon off; pid ${directory}/pid; error_log ${directory}/error.log; worker_processes 1;
    events { worker_connections 512; }
    http {
      access_log off; ${temporary}
      server {
        listen 127.0.0.1:${port};
        if ($http_upgrade) { return 403; }
        ${more}
        location / { proxy_pass http://127.0.0.1:${server.port}; }
      }
    }`);
  const child = spawn('nginx', ['-c', join(directory, 'nginx.conf'), '-e', join(directory, 'error.log')], { stdio: 'ignore' });
  atEnd(async () => {
    const ended = child.exitCode === null && once(child, 'exit');
    child.kill('SIGTERM');
    await ended;
    rmSync(directory, { recursive: true, force: true });
  });
  await until(() => fetch(`http://127.0.0.1:${port}/livez`).then(({ ok }) => ok, () => false), 'nginx listens');
  return { port };
}
