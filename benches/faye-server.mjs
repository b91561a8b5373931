// A Faye server as its documentation sets one up, for benches/compare.
// Prints `listening on http://127.0.0.1:PORT`.

import http from 'node:http';
import { createRequire } from 'node:module';

const require = createRequire(new URL('../compat-tests/package.json', import.meta.url));
const faye = require('faye-1.4');

const server = http.createServer();
new faye.NodeAdapter({ mount: '/faye', timeout: 60 }).attach(server);
server.listen(0, '127.0.0.1', () => {
  console.log(`listening on http://127.0.0.1:${server.address().port}`);
});
