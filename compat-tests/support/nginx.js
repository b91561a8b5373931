// A proxy in front of servers: nginx as Debian has it.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { atEnd } from './at-end.js';
import { until } from './events.js';
import { freePort } from './free-port.js';

/** With its default buffering, HTTP/1.0 to the server and no upgrades: what a WebSocket asks for is refused. `more`: further directives. */
export function startBlockingProxy(server, more = '') {
  return startNginx((port) => `
    server {
      listen 127.0.0.1:${port};
      if ($http_upgrade) { return 403; }
      ${more}
      location / { proxy_pass http://127.0.0.1:${server.port}; }
    }`);
}

/** `http(port)`: what is to stand in its block `http`. It ends with the test file. */
export async function startNginx(http, connectionsMax = 512) {
  const port = await freePort();
  const directory = mkdtempSync(join(tmpdir(), 'raptor-nginx-'));
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((name) => `${name}_temp_path ${directory}/${name};`).join(' ');
  writeFileSync(join(directory, 'nginx.conf'), `
    ${process.getuid() === 0 ? 'user root;' : ''} daemon off; pid ${directory}/pid; error_log ${directory}/error.log; worker_processes 1;
    events { worker_connections ${connectionsMax}; }
    http { access_log off; ${temporary} ${http(port)} }`);
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
