// The scenario over SockJS, which pusher-js carries with it since its beginning; its copy is the same in all versions.

import { scenarioInPage } from '../support/in-page.js';
import { noEventSource, noFrames, onlyPolling } from './old-browsers.js';

/** Over SockJS pusher-js leaves it to SockJS to find out whether the server is there. */
const ASKS = ['a quiet client asks whether the server is there, and is answered'];
/** Chromium does not tell a page that a frame stopped loading because the server is gone. SockJS misses its heartbeats a minute later. */
const SEES_AT_ONCE = ['clients of a killed server see 1006, reconnect and subscribe again'];
/** A script that loads cannot be told to stop. Where a client is closed and its page stays, the server learns of it when the script has loaded. */
const LEAVES_AT_ONCE = [
  'a member finds everybody in its first list and learns who comes and goes',
  'a user with two connections comes once and goes with the last of them',
  'a numeric user_id becomes a string for everybody',
  'a watchlist tells who is online at sign-in and who comes and goes',
];

/** The transports of SockJS: which page has to use it, and which steps cannot be had over it. */
const TRANSPORTS = {
  'iframe-eventsource': { before: undefined, without: ASKS },
  'iframe-htmlfile': { before: noEventSource, without: [...ASKS, ...SEES_AT_ONCE] },
  'iframe-xhr-polling': { before: onlyPolling, without: ASKS },
  // A page for each step: the scripts of closed clients keep its connections.
  'jsonp-polling': { before: noFrames, without: [...ASKS, ...LEAVES_AT_ONCE], pageForEach: true },
};

export function scenarioOverSockJs(version, transports, more = {}) {
  for (const transport of transports) {
    const { without, ...options } = TRANSPORTS[transport];
    scenarioInPage(version, { transports: ['sockjs'], as: `sockjs: ${transport}${more.sameOrigin ? ', same origin' : ''}`, only: (title) => !without.includes(title), ...options, ...more });
  }
}
