// Who is there, over both protocols at once, and who has vanished: the scenario with one server.

import { describe } from 'node:test';

import { bridgeInNode } from './support/bridge.js';
import { bridgeInPage } from './support/bridge-in-page.js';
import { settingsFor, steps } from './support/presence-scenario.js';

describe('presence over both protocols', { concurrency: 3 }, () => {
  for (const transport of ['websocket', 'long-polling']) bridgeInNode(steps, { transport, bayeux: settingsFor(transport) });
  bridgeInPage(steps, 'presence-scenario.js', { transport: 'eventsource', bayeux: settingsFor('eventsource') });
});
