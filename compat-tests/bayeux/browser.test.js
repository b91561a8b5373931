// The scenario with the browser build that the server itself serves and with those of older versions, over every transport that pages
// have, side by side.

import { describe } from 'node:test';

import { scenarioInPage } from './support/in-page.js';
import { VERSIONS } from './support/world.js';

describe('the scenario', { concurrency: 6 }, () => {
  for (const version of VERSIONS) {
    for (const transport of ['websocket', 'eventsource', 'long-polling']) scenarioInPage(version, transport);
    for (const transport of ['websocket', 'cross-origin-long-polling', 'callback-polling']) scenarioInPage(version, transport, { isCrossOrigin: true });
  }
});
