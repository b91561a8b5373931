// The bridge and the presence scenario with three nodes behind a load balancer without stickiness, over every transport that Faye has in Node and
// in pages.

import { describe } from 'node:test';

import { bridgeInNode } from '../bayeux/support/bridge.js';
import { bridgeInPage } from '../bayeux/support/bridge-in-page.js';
import { steps as bridge } from '../bayeux/support/bridge-scenario.js';
import { settingsFor, steps as presence } from '../bayeux/support/presence-scenario.js';
import { startNodes } from '../support/nodes.js';

const SCENARIOS = [
  ['the bridge', bridge, 'bridge-scenario.js', () => ({})],
  ['presence', presence, 'presence-scenario.js', (transport) => ({ bayeux: settingsFor(transport) })],
];

describe('three nodes behind a load balancer', { concurrency: 8 }, () => {
  for (const [name, steps, file, settings] of SCENARIOS) {
    const options = (transport) => ({ transport, ...settings(transport), start: startNodes });
    describe(name, { concurrency: 4 }, () => {
      for (const transport of ['websocket', 'long-polling']) bridgeInNode(steps, options(transport));
      for (const transport of ['websocket', 'eventsource', 'long-polling']) bridgeInPage(steps, file, options(transport));
      for (const transport of ['websocket', 'cross-origin-long-polling', 'callback-polling']) bridgeInPage(steps, file, { isCrossOrigin: true, ...options(transport) });
    });
  }
});
