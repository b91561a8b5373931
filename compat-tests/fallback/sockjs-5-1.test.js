// The scenario with pusher-js 5.1 over SockJS, in a page of another origin.

import { scenarioOverSockJs } from './sockjs-scenario.js';

scenarioOverSockJs('5.1', ['iframe-eventsource']);
