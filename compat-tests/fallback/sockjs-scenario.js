// The scenario over SockJS, which pusher-js carries with it since its beginning; its copy is the same in all versions.

import { scenarioInPage } from '../support/in-page.js';
import { noEventSource, noFrames, onlyPolling } from './old-browsers.js';

const PAGE_OF = { 'iframe-eventsource': undefined, 'iframe-htmlfile': noEventSource, 'iframe-xhr-polling': onlyPolling, 'jsonp-polling': noFrames };

/** Over SockJS pusher-js leaves it to SockJS to find out whether the server is there. */
const ASKS = 'a quiet client asks whether the server is there, and is answered';

/** `transports`: those of SockJS. A script that loads cannot be told to stop: clients that are closed in a page keep connections of the browser busy. */
export function scenarioOverSockJs(version, transports) {
  for (const transport of transports) {
    scenarioInPage(version, { transports: ['sockjs'], before: PAGE_OF[transport], as: `sockjs: ${transport}`, only: (title) => title !== ASKS, pageForEach: transport === 'jsonp-polling' });
  }
}
