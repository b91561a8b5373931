// pusher-js and Faye clients on the same channels: the scenario with one server, over both transports that Faye has in Node.

import { bridgeInNode } from './support/bridge.js';
import { steps } from './support/bridge-scenario.js';

for (const transport of ['websocket', 'long-polling']) bridgeInNode(steps, { transport });
