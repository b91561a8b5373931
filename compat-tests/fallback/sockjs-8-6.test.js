// The scenario with pusher-js 8.6 over SockJS, in a page of another origin.

import { scenarioOverSockJs } from './sockjs-scenario.js';

scenarioOverSockJs('8.6', ['iframe-eventsource']);
