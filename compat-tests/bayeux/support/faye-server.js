// A Faye server in a process of its own: `node faye-server.js PORT HOLD_SECS`. Its first line on stdout is the port it listens on.

import { createServer } from 'node:http';
import { createRequire } from 'node:module';

const { NodeAdapter } = createRequire(import.meta.url)('faye-1.4');
const [port, holdSecs] = process.argv.slice(2).map(Number);

const http = createServer((_, response) => response.writeHead(404).end());
new NodeAdapter({ mount: '/faye', timeout: holdSecs }).attach(http);
http.listen(port, '127.0.0.1', () => console.log(http.address().port));
